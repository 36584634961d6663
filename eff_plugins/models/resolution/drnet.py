"""DRNet: a tiny predictor looks at each picture and chooses the resolution at which the classifier sees it.

Source: Zhu et al., "Dynamic Resolution Network", NeurIPS 2021, https://arxiv.org/abs/2106.02898.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.budget import carry_calibrations
from eff_plugins.dynamic.choices import Choose, take_rows
from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.models.classifiers import ImageClassifier
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.models.resolution.norm import at_resolution, split_norms
from eff_plugins.models.resolution.resample import resize
from eff_plugins.registry import MODELS


class ResolutionPredictor(nn.Module):
    """Convolutions of stride 2 on a small resample, pooling and a linear layer: (B, 3, H, W) -> logits (B, count).

    Args:
        count: Resolutions.
        size: Side in pixels of the resample.
        channels: Of the convolutions.
    """

    is_policy = True  # has no counterpart in the dense network, and its own initialisation

    def __init__(self, count: int, size: int = 64, channels: Sequence[int] = (16, 32, 64, 64)) -> None:
        super().__init__()
        if size < 2 ** len(channels):
            raise ValueError(
                f'size={size} must be at least {2 ** len(channels)}: the predictor halves it {len(channels)} times'
            )
        self.size = size
        self.convs = nn.Sequential(
            *(
                ConvNormAct(a, b, 3, 2, norm_cfg=dict(type='BN'), act='relu')
                for a, b in zip((3, *channels), channels, strict=False)
            )
        )
        self.fc = nn.Linear(channels[-1], count)
        nn.init.normal_(self.fc.weight, std=0.01)  # all resolutions are about equally likely at first
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.convs(resize(x, (self.size, self.size))).mean((2, 3)))


@MODELS.register_module()
class DRNet(DynamicModule, ImageClassifier):
    """Any classifier of the suite, each picture at the resolution that a small predictor chooses for it.

    The convolutions are shared and BatchNorm is kept per resolution. Keys are those of the ``ImageClassifier`` of the same
    backbone and head, plus ``predictor.*`` and the further resolutions' norms (``....others.*``); the weights of the dense
    classifier load without these. Pictures are scaled by ``resolutions[k] / resolutions[0]``, whatever their size: at
    the first resolution they are taken as they come.

    ``'dense'`` is the classifier at the full resolution, without predictor; ``'masked'`` computes all resolutions and mixes
    the logits by the one-hot decisions; ``'sparse'`` computes each picture once, grouped by resolution. Train with
    ``BudgetHook(budget=..., losses=dict(hinge=...))``.

    Args:
        backbone: Config of a backbone with BatchNorm.
        head: Config of its head.
        resolutions: Sides in pixels, descending.
        predictor: Arguments of :class:`ResolutionPredictor`.
        each_weight: Weight of the cross-entropy of every resolution's own logits, which keeps those trained that the
            predictor does not choose; 0 leaves the mixture's alone.
        data_preprocessor: See :class:`~eff_plugins.models.classifiers.ImageClassifier`.
        eval_size: As there, and so is ``eval_interpolation``.

    Raises:
        ValueError: Resolutions that do not descend, a backbone without BatchNorm or with gradient checkpointing.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        resolutions: Sequence[int] = (224, 168, 112),
        predictor: Mapping | None = None,
        each_weight: float = 1.0,
        data_preprocessor: dict | None = None,
        eval_size: Sequence[int] | None = None,
        eval_interpolation: str = 'bicubic',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, head, data_preprocessor, eval_size, eval_interpolation, init_cfg)
        self.resolutions = tuple(resolutions)
        if len(self.resolutions) < 2 or sorted({*self.resolutions, 0}, reverse=True) != [*self.resolutions, 0]:
            raise ValueError(f'resolutions={self.resolutions} must be at least two positive numbers that descend')
        if getattr(self.backbone, 'with_cp', False):
            raise ValueError(
                'with_cp=True recomputes blocks after the resolution has changed; DRNet needs with_cp=False'
            )
        count = len(self.resolutions)
        host, self.switch = split_norms(nn.ModuleDict(dict(backbone=self.backbone, head=self.head)), count)
        self.backbone, self.head = host['backbone'], host['head']
        self.networks = nn.ModuleList()  # of all resolutions but the first, in the specialised form
        self.predictor = ResolutionPredictor(count, **(predictor or {}))
        self.choose = Choose(count)
        self.each_weight = each_weight
        self._host_macs, self._predictor_macs = MacsOf(), MacsOf()

    def settings(self) -> tuple:
        return self.resolutions

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes), each picture's from the resolution chosen for it."""
        self.check_execution()
        if self.execution == 'dense':
            return self._network(0, inputs)
        on = self._decide(inputs)
        if self.execution == 'masked':
            return self._mix(on, self._all(inputs))
        return self._sparse(inputs, on.argmax(1))

    def losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``loss`` of the chosen resolutions, and ``loss_<side>`` of each.

        Raises:
            RuntimeError: SyncBatchNorm has taken the place of the norms of all resolutions.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in self.backbone.modules()):
            raise RuntimeError('SyncBatchNorm knows one resolution, DRNet has a BatchNorm for each: leave sync_bn out')
        if self.execution != 'masked' or not self.each_weight:
            return super().losses(inputs, labels)
        on, logits = self._decide(inputs), self._all(inputs)
        losses = {'loss': self.head.loss(self._mix(on, logits), labels)}
        for side, part in zip(self.resolutions, logits, strict=True):
            losses[f'loss_{side}'] = self.each_weight * self.head.loss(part, labels)
        return losses

    def specialise(self) -> DRNet:
        """A copy for inference with a static network a resolution, whose BatchNorm can be folded into its convolutions.

        The weights are held once a resolution; the state dict is another than the trained form's.
        """
        twin = deepcopy(self).eval()
        if twin.networks:  # it is a specialised one
            return twin
        host = nn.Sequential(twin.backbone, twin.head)
        (twin.backbone, twin.head), *others = (at_resolution(host, k) for k in range(len(self.resolutions)))
        twin.networks = nn.ModuleList(others)
        twin.networks.is_policy = True  # type: ignore[assignment]  # none of the dense network's
        carry_calibrations(self, twin)
        return twin

    def _decide(self, x: Tensor) -> Tensor:
        scores = self.predictor(x)
        on = self.choose(scores)
        if recording():
            self._report(x, scores, on)
        return on

    def _all(self, x: Tensor) -> list[Tensor]:
        return [self._network(index, x) for index in range(len(self.resolutions))]

    @staticmethod
    def _mix(on: Tensor, logits: list[Tensor]) -> Tensor:
        return sum(on[:, k : k + 1] * part for k, part in enumerate(logits))  # type: ignore[return-value]

    def _sparse(self, x: Tensor, choice: Tensor) -> Tensor:
        first = int(choice[0]) if len(choice) else 0
        if bool((choice == first).all()):
            return self._network(first, x)
        parts = {index: (choice == index).nonzero().flatten() for index in range(len(self.resolutions))}
        logits = {index: self._network(index, take_rows(x, rows)) for index, rows in parts.items() if len(rows)}
        out = next(iter(logits.values())).new_empty(len(x), self.head.num_classes)
        for index, part in logits.items():
            out[parts[index]] = part
        return out

    def _network(self, index: int, x: Tensor) -> Tensor:
        """The classifier at one resolution: pictures as they come -> logits."""
        x = resize(x, self._size(index, x))
        if self.networks and index:
            return self.networks[index - 1](x)
        self.switch.index = index
        try:
            return self.head(self.backbone(x))
        finally:
            self.switch.index = 0

    def _size(self, index: int, x: Tensor) -> tuple[int, int]:
        share = self.resolutions[index] / self.resolutions[0]
        return max(1, round(x.shape[2] * share)), max(1, round(x.shape[3] * share))

    def _report(self, x: Tensor, scores: Tensor, on: Tensor) -> None:
        host = nn.Sequential(self.backbone, self.head)
        sizes = [(x.shape[1], *self._size(index, x)) for index in range(len(self.resolutions))]
        costs = torch.tensor([self._host_macs(host, size) for size in sizes], device=x.device)
        policy = self._predictor_macs(self.predictor, tuple(x.shape[1:]))
        macs = (on * costs).sum(1)
        emit(
            self,
            dense_macs=float(costs[0]),
            macs=macs + policy,
            policy_macs=policy,
            density=macs / costs[0],
            scores=scores.detach(),
            choice=on.detach().argmax(1),
            labels=tuple('x'.join(map(str, dict.fromkeys(size[1:]))) + ' pixels' for size in sizes),
            least_macs=float(costs[-1]) + policy,
            masked_macs=float(costs.sum()) + policy,
        )
