from types import SimpleNamespace

import pytest
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from torch import nn

from eff_plugins.engine.class_count import ClassCountHook


def runner(train, val=None, **heads):
    model = nn.Module()
    for name, count in heads.items():
        head = nn.Module()
        head.num_classes = count
        setattr(model, name, head)
    return SimpleNamespace(
        model=model,
        val_loop=None if val is None else object(),
        train_dataloader=SimpleNamespace(dataset=train),
        val_dataloader=SimpleNamespace(dataset=val),
        test_dataloader=SimpleNamespace(dataset=train),
    )


def named(*classes):
    return SimpleNamespace(metainfo=dict(classes=classes) if classes else {})


class Rows(BaseDataset):
    def __init__(self, *labels, key='label'):
        self.rows = [{key: label} for label in labels]
        super().__init__(ann_file='rows.json', pipeline=[lambda row: row])

    def load_data_list(self):
        return self.rows


def test_a_difference_names_head_and_data():
    with pytest.raises(ValueError, match=r'model\.bbox_head \(Module\) has num_classes=80, .* 2 classes \(a, b\)'):
        ClassCountHook().before_train(runner(named('a', 'b'), bbox_head=80))
    with pytest.raises(ValueError, match='has 3 classes'):
        ClassCountHook().before_train(runner(named('a', 'b'), named('a', 'b', 'c'), bbox_head=2))


def test_agreement_proposal_heads_and_unnamed_classes_pass():
    ClassCountHook().before_train(runner(named('a', 'b'), bbox_head=2, rpn_head=1, loss=7))
    ClassCountHook().before_train(runner(named(), cls_head=80))


@pytest.mark.parametrize('key', ['label', 'gt_label'])
@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: RepeatDataset(d, 2), lambda d: ConcatDataset([Rows(0), d])])
def test_label_beyond_the_head_is_found_in_every_wrapper(key, wrap):
    hook = ClassCountHook()
    hook.before_train(runner(wrap(Rows(0, 1, key=key)), cls_head=2))
    match = r'rows\.json, row 1: label 2, but model\.cls_head \(Module\) has num_classes=2, .* from 0 to 1'
    for check in (hook.before_train, hook.before_test):
        with pytest.raises(ValueError, match=match):
            check(runner(wrap(Rows(0, 2, key=key)), cls_head=2))
    with pytest.raises(ValueError, match=match):
        hook.before_train(runner(Rows(0), wrap(Rows(1, 2, key=key)), cls_head=2))


def test_validation_alone_is_checked_and_once_for_a_data_set():
    hook = ClassCountHook()
    good, bad = Rows(0, 1), Rows(0, 2)
    with pytest.raises(ValueError, match='label 2'):
        hook.before_val(runner(None, bad, cls_head=2))
    hook.before_val(runner(None, good, cls_head=2))
    hook.before_val(runner(None, good, cls_head=1))  # not looked at again
    with pytest.raises(ValueError, match='label 2'):
        hook.before_val(runner(None, bad, cls_head=2))


def test_a_missing_label_stops_training_only():
    ClassCountHook().before_test(runner(Rows(0, -1), cls_head=2))
    with pytest.raises(ValueError, match='label -1'):
        ClassCountHook().before_train(runner(Rows(0, -1), cls_head=2))


@pytest.mark.parametrize('options', [{}, {'multi_class': True, 'num_classes': 2}, {'indices': [2, 1]}])
def test_list_file_of_mmaction_is_named_with_its_line(tmp_path, options):
    pytest.importorskip('mmaction')
    from mmaction.datasets import VideoDataset

    path = tmp_path / 'train.txt'
    path.write_text('a/0.mp4 0\nb/0.mp4 1\nc/d.mp4 2\n')
    dataset = VideoDataset(str(path), pipeline=[lambda row: row], data_prefix=dict(video='/clips'), **options)
    match = r'train\.txt, line 3 \(c/d\.mp4 2\): label 2, but model\.cls_head \(Module\) has num_classes=2'
    with pytest.raises(ValueError, match=match):
        ClassCountHook().before_train(runner(dataset, cls_head=2))
    ClassCountHook().before_train(runner(dataset, cls_head=3))
