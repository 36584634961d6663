"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.evaluator import BaseMetric

from eff_plugins.registry import METRICS


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of pictures, in percent, whose label is among the k highest scores: ``acc/top1``, ``acc/top5`` ...

    Args:
        topk: The values of k.
    """

    default_prefix = 'acc'

    def __init__(self, topk: Sequence[int] = (1,), **kwargs) -> None:
        super().__init__(**kwargs)
        self.topk = tuple(topk)

    def process(self, data_batch: object, data_samples: Sequence[dict]) -> None:
        """Store for each sample the rank of its label among the scores (0 = highest)."""
        for sample in data_samples:
            scores, label = sample['pred_scores'], sample['gt_label']
            if not 0 <= label < len(scores):
                raise ValueError(f'gt_label {label} is outside the {len(scores)} classes of the head')
            # Ties count against the prediction, so that a constant output is no success.
            self.results.append(int((torch.as_tensor(scores) >= scores[label]).sum()) - 1)

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        ranks = torch.tensor(results)
        return {f'top{k}': 100.0 * (ranks < k).float().mean().item() for k in self.topk}
