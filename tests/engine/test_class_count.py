from types import SimpleNamespace

import pytest
from torch import nn

from eff_plugins.engine.class_count import ClassCountHook


def runner(classes, **heads):
    model = nn.Module()
    for name, count in heads.items():
        head = nn.Module()
        head.num_classes = count
        setattr(model, name, head)
    dataset = SimpleNamespace(metainfo=dict(classes=classes) if classes else {})
    return SimpleNamespace(model=model, train_dataloader=SimpleNamespace(dataset=dataset))


def test_a_difference_names_head_and_data():
    with pytest.raises(ValueError, match=r'model\.bbox_head \(Module\) has num_classes=80, .* 2 classes \(a, b\)'):
        ClassCountHook().before_train(runner(('a', 'b'), bbox_head=80))


def test_agreement_proposal_heads_and_unnamed_classes_pass():
    ClassCountHook().before_train(runner(('a', 'b'), bbox_head=2, rpn_head=1, loss=7))
    ClassCountHook().before_train(runner(None, cls_head=80))
