"""Any timm model that gives feature maps, as a backbone for every framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.compat import require
from eff_plugins.models.layers.conv import freeze, is_norm
from eff_plugins.naming import nearest
from eff_plugins.registry import MODELS


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """A timm model with ``features_only``: (B, C, H, W) -> one map (B, C', H', W') for each of ``out_indices``.

    Maps are numbered by resolution level: 0 = stride 2 ... 4 = stride 32 (the last map of that stride). A transformer whose
    maps all have one stride (ViT) is numbered by its blocks, from 0, as are the few models whose strides are no powers of
    two. Maps that timm returns channels-last are permuted.

    Args:
        model: timm's name, for instance ``'resnet18'`` or ``'convnext_atto.d2_in1k'``.
        out_indices: Maps to return, ascending.
        in_channels: Channels of the input.
        pretrained: Let timm download its weights.
        frozen_stages: -1 freezes nothing, k everything that the map numbered k is computed with.
        norm_cfg: ``dict(type='BN')`` or ``dict(type='SyncBN')``, with ``requires_grad=False`` to freeze the affine terms of
            BatchNorm, and with its ``eps`` and ``momentum``; None leaves what the model has.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute activations in the backward pass, as far as the timm model supports it.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.
        **kwargs: For ``timm.create_model``: ``img_size``, ``dynamic_img_size``, ``drop_path_rate``, ``checkpoint_path`` ...

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Their strides.
        size_divisor: The largest of these strides.
        input_size: (H, W) that the input must have; None where any size works.

    Raises:
        MissingExtraError: timm is not installed.
        ValueError: Unknown model (the nearest names are given), one without feature maps, a map that it does not have, or an
            option that it does not support.
    """

    def __init__(
        self,
        model: str = 'resnet18',
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        pretrained: bool = False,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(init_cfg)
        self.model, self.in_channels, self.norm_eval = model, in_channels, norm_eval
        self.norm_cfg = dict(norm_cfg or {})
        weights = {key: kwargs.pop(key) for key in ('checkpoint_path',) if key in kwargs}
        self._arguments = dict(kwargs, in_chans=in_channels, features_only=True)
        _check_name(model)
        probe = self._probe()
        info = probe.feature_info.info
        places = _places([item['reduction'] for item in info])
        self.out_indices = tuple(out_indices)
        if not self.out_indices or list(self.out_indices) != sorted({*self.out_indices} & {*places}):
            raise ValueError(
                f'out_indices={self.out_indices} must ascend and lie in {tuple(places)}; the maps of timm model {model} '
                f'have strides {tuple(info[place]["reduction"] for place in places.values())}'
            )
        taken = [places[index] for index in self.out_indices]
        self.out_channels = tuple(info[place]['num_chs'] for place in taken)
        self.out_strides = tuple(info[place]['reduction'] for place in taken)
        self.size_divisor = max(self.out_strides)
        self.input_size = _fixed_size(probe, kwargs)
        self.net = self._create(pretrained, out_indices=taken, **weights)
        self._channels_last = getattr(self.net, 'output_fmt', None) == 'NHWC'
        self._set_norms()
        self._freeze_idle(frozen_stages, places, taken)
        if with_cp:
            self._checkpoint()

    def _create(self, pretrained: bool, **kwargs: Any) -> nn.Module:
        timm = require('timm', 'TimmBackbone')
        try:
            return timm.create_model(self.model, pretrained=pretrained, **{**self._arguments, **kwargs})
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise RuntimeError(
                f'the weights of timm model {self.model} could not be had ({error}); without network give '
                'checkpoint_path=FILE in place of pretrained=True'
            ) from error

    def _probe(self, **kwargs: Any) -> Any:
        """The model without memory, to ask what it has."""
        try:
            with torch.device('meta'):
                probe: Any = self._create(False, **kwargs)
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise ValueError(f'timm model {self.model} gives no feature maps: {error}') from error
        if not probe.feature_info.info:
            raise ValueError(f'timm model {self.model} gives no feature maps: timm does not describe any')
        return probe

    def _set_norms(self) -> None:
        kind = self.norm_cfg.get('type', 'BN')
        unknown = sorted(self.norm_cfg.keys() - {'type', 'requires_grad', 'eps', 'momentum'})
        if kind not in ('BN', 'SyncBN') or unknown:
            raise ValueError(
                f'norm_cfg={self.norm_cfg}: TimmBackbone knows the types BN and SyncBN, requires_grad, eps and momentum; '
                'give other normalisation as an argument of the timm model (norm_layer=...)'
            )
        if kind == 'SyncBN':
            self.net = require('timm', 'TimmBackbone').layers.convert_sync_batchnorm(self.net)
        numbers = {key: self.norm_cfg[key] for key in ('eps', 'momentum') if key in self.norm_cfg}
        for module in self.net.modules():
            if is_norm(module):
                vars(module).update(numbers)

    def _freeze_idle(self, frozen: int, places: dict[int, int], taken: list[int]) -> None:
        """Freeze what ``frozen_stages`` asks for and what no returned map needs."""
        if frozen not in (-1, *places):
            raise ValueError(f'frozen_stages={frozen} of timm model {self.model} must be -1 or one of {tuple(places)}')
        still = self._parameters_of([places[frozen]]) if frozen >= 0 else set()
        trained = self._parameters_of(taken) - still
        for name, parameter in self.net.named_parameters():
            if name not in trained:
                parameter.requires_grad_(False)
        owned = {name: {f'{name}.{p}' for p, _ in part.named_parameters()} for name, part in self.net.named_modules()}
        self._frozen = [self.net.get_submodule(name) for name, own in owned.items() if name and own and own <= still]
        self.frozen_stages = frozen
        self._hold()

    def _parameters_of(self, maps: list[int]) -> set[str]:
        """Names of the parameters that timm's maps of these numbers depend on, from the graph of a forward pass."""
        probe = self._probe(out_indices=maps)
        height, width = self.input_size or probe.pretrained_cfg['input_size'][1:]
        outs = probe.eval()(torch.empty(1, self.in_channels, height, width, device='meta'))
        names, parameters = zip(*((n, p) for n, p in probe.named_parameters() if p.requires_grad), strict=True)
        gradients = torch.autograd.grad(sum(out.sum() for out in outs), parameters, allow_unused=True)
        return {name for name, gradient in zip(names, gradients, strict=True) if gradient is not None}

    def _checkpoint(self) -> None:
        net: Any = self.net if hasattr(self.net, 'set_grad_checkpointing') else getattr(self.net, 'model', None)
        if not hasattr(net, 'set_grad_checkpointing'):
            raise ValueError(f'with_cp=True: timm model {self.model} has no gradient checkpointing')
        net.set_grad_checkpointing(True)

    def init_weights(self) -> None:
        """timm has initialised or loaded the model; ``init_cfg``'s checkpoint is loaded strictly."""
        if not self.is_init and isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            from eff_plugins.hub import load_backbone_weights

            load_backbone_weights(self, self.init_cfg['checkpoint'])
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.input_size is not None and tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f'timm model {self.model} takes pictures of {self.input_size} (H, W), not {tuple(x.shape[2:])}; give '
                'img_size=(H, W) for another size, or dynamic_img_size=True (ViT and the like) or strict_img_size=False '
                '(Swin and the like) for any size'
            )
        maps = self.net(x)
        return tuple(y.permute(0, 3, 1, 2).contiguous() if self._channels_last else y for y in maps)

    def _hold(self) -> None:
        for module in self._frozen:
            freeze(module)
        for module in self.net.modules():
            if is_norm(module):
                if not self.norm_cfg.get('requires_grad', True):
                    for parameter in module.parameters(recurse=False):
                        parameter.requires_grad_(False)
                if self.norm_eval and self.training:
                    module.eval()

    def train(self, mode: bool = True) -> TimmBackbone:
        """Like ``nn.Module.train``, but frozen parts (and with ``norm_eval`` all BatchNorms) stay in eval mode."""
        super().train(mode)
        self._hold()
        return self


def _check_name(model: str) -> None:
    timm = require('timm', 'TimmBackbone')
    if ':' not in model and not timm.is_model(model):
        raise ValueError(
            f'timm has no model {model!r}; nearest: {nearest(model.partition(".")[0], timm.list_models())}'
        )


def _places(strides: list[int]) -> dict[int, int]:
    """Out index -> number of the map in timm's list."""
    powers = {stride: place for place, stride in enumerate(strides) if stride > 1 and not stride & (stride - 1)}
    if not powers or (len(strides) > 1 and len({*strides}) == 1):
        return dict(enumerate(range(len(strides))))
    return {stride.bit_length() - 2: powers[stride] for stride in sorted(powers)}


def _fixed_size(net: Any, arguments: Mapping) -> tuple[int, int] | None:
    """The only input size that a model takes, or None: a strict patch embedding, or what timm says of the model."""
    if not net.pretrained_cfg.get('fixed_input_size', False):
        return None
    embeddings = [module for module in net.modules() if hasattr(module, 'strict_img_size')]
    if embeddings:
        size = embeddings[0].img_size if embeddings[0].strict_img_size else None
    else:
        size = arguments.get('img_size', net.pretrained_cfg['input_size'][1:])
    return size if size is None else (size, size) if isinstance(size, int) else tuple(size)
