import pytest
import torch

from eff_plugins.registry import METRICS


def test_topk_and_ties():
    metric = METRICS.build(dict(type='Accuracy', topk=(1, 2)))
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [1 / 3, 1 / 3, 1 / 3]])
    metric.process(None, [dict(pred_scores=s, gt_label=label) for s, label in zip(scores, (0, 1, 0), strict=True)])
    assert metric.evaluate(3) == {'acc/top1': pytest.approx(100 / 3), 'acc/top2': pytest.approx(200 / 3)}


def test_a_label_outside_the_scores_is_named():
    metric = METRICS.build(dict(type='Accuracy'))
    with pytest.raises(ValueError, match='gt_label 3 is outside the 3 classes'):
        metric.process(None, [dict(pred_scores=torch.zeros(3), gt_label=3)])
