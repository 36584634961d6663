"""Fold BatchNorm into the convolution before it, in models of any origin."""

from __future__ import annotations

import copy
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from eff_plugins.dynamic.budget import carry_calibrations
from eff_plugins.dynamic.module import executing
from eff_plugins.dynamic.residual import ResidualBlock
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.ops.fold import folded


def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """A copy of ``model`` for inference with BatchNorm folded into the convolutions.

    In eval mode BatchNorm is a scale and a shift a channel, which the weights and the bias of the convolution whose output it
    reads can take over (Jacob et al., CVPR 2018, section 3.2). Each module's own ``forward`` is traced with
    ``torch.fx``, its children being opaque, to see which convolution feeds which BatchNorm and nothing else; a
    ``forward`` that cannot be traced keeps what it calls itself as it is, while its children are treated all the same.
    Classes, attributes and names stay: the rest of the host's code works on the copy.

    Folded are convolutions of torch and subclasses that are linear in their weight, which is tried out on each; and
    BatchNorm of torch, also with timm's built-in activation, which stays. What is shared or used twice is left alone. Steps
    of a :class:`ConvNormAct` within a sequence become steps of that sequence: at batch 1 a call less is worth a percent.

    Args:
        model: Left as it is.

    Returns:
        The copy, in eval mode. Its outputs equal the model's up to rounding; do not train it.
    """
    fused = copy.deepcopy(model).eval()
    modules = Counter(id(module) for _, module in fused.named_modules(remove_duplicate=False))
    weights = Counter(id(m.weight) for m in fused.modules() if isinstance(m, _ConvNd))
    with executing(fused, 'dense'):  # which runs all layers of a dynamic network and branches on no data
        for parent in list(fused.modules()):
            for conv_name, norm_name in pairs(parent, _is_conv, _folds):
                conv, norm = parent.get_submodule(conv_name), parent.get_submodule(norm_name)
                shared = modules[id(conv)] > 1 or modules[id(norm)] > 1 or weights[id(conv.weight)] > 1
                if not shared and _fold(conv, norm):
                    _replace(parent, norm_name, norm)
    for sequence in list(fused.modules()):
        if _is_plain_sequence(sequence):
            _splice(sequence)
    carry_calibrations(model, fused)
    return fused


class _ShallowTracer(fx.Tracer):
    """Traces one ``forward``; children are leaves, but plain sequences of them are looked through."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not _is_plain_sequence(m)


def _is_plain_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _reachable(module: nn.Module, prefix: str = '') -> Iterator[tuple[str, nn.Module]]:
    """Children, and those of children that are plain sequences, by path."""
    for name, child in module.named_children():
        yield prefix + name, child
        if _is_plain_sequence(child):
            yield from _reachable(child, f'{prefix}{name}.')


def _is_conv(module: nn.Module | None) -> bool:
    return isinstance(module, _ConvNd)


Predicate = Callable[[nn.Module | None], bool]


def pairs(module: nn.Module, first: Predicate, second: Predicate) -> list[tuple[str, str]]:
    """Paths (a, b) below ``module`` whose forward feeds a's output to b alone, and calls both once.

    Args:
        module: Its own ``forward`` is traced; plain sequences in it are looked through.
        first: What a is, such as a convolution.
        second: What b is, such as a BatchNorm.
    """
    reachable = dict(_reachable(module))
    if not any(second(child) for child in reachable.values()):
        return []
    signature = inspect.signature(type(module).forward)
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    try:
        with torch.enable_grad():  # without, blocks may ask more of a proxy than it knows, to write in place
            graph = _ShallowTracer().trace(_shallow_copy(module), concrete_args=defaults or None)
    except Exception:  # whatever a foreign forward raises when it meets a proxy: it cannot be traced
        return []
    calls = [node for node in graph.nodes if node.op == 'call_module']
    times = Counter(node.target for node in calls)
    found = []
    for node in calls:
        source = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(source, fx.Node) or source.op != 'call_module' or len(source.users) != 1:
            continue
        a, b = str(source.target), str(node.target)
        if times[a] == times[b] == 1 and first(reachable.get(a)) and second(reachable.get(b)):
            found.append((a, b))
    return found


def _shallow_copy(module: nn.Module) -> nn.Module:
    """What is traced in the module's stead, so that a forward that keeps something in `self` keeps no proxy in the model.

    A residual block that a dynamic module runs feeds its layers as the static block does.
    """
    twin = copy.copy(module)
    if isinstance(twin, ResidualBlock) and twin.dynamic is not None:
        twin._modules = {name: child for name, child in twin._modules.items() if name != 'dynamic'}
        twin.dynamic = None
    return twin


def _folds(module: nn.Module | None) -> bool:
    """Whether ``module`` is a BatchNorm with running statistics whose forward is torch's or timm's."""
    if not isinstance(module, _BatchNorm) or module.running_mean is None:
        return False
    forward = type(module).forward
    return forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or _has_builtin_activation(module)


def _has_builtin_activation(module: nn.Module) -> bool:
    timm = sys.modules.get('timm.layers.norm_act')  # whoever has such a module has imported it
    return timm is not None and type(module).forward is timm.BatchNormAct2d.forward


def _fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Give ``conv`` what ``norm`` does; False, and nothing changed, where it cannot have that."""
    assert isinstance(conv, _ConvNd) and isinstance(norm, _BatchNorm)
    if conv.transposed or conv.out_channels != norm.num_features:
        return False
    before = copy.deepcopy(conv)
    weight, bias = folded(conv, norm)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)
    if type(conv).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward) and not _agree(
        conv, before, norm
    ):
        conv.weight, conv.bias = before.weight, before.bias
        return False
    return True


@torch.no_grad()
def _agree(fused: _ConvNd, conv: _ConvNd, norm: _BatchNorm) -> bool:
    """Whether ``fused`` does what ``conv`` and ``norm`` do, on a small random input.

    A subclass may do more than convolve with its weight, for instance standardise it first; then nothing can be folded.
    """
    side = [d * (k - 1) + 1 + 2 * s for d, k, s in zip(conv.dilation, conv.kernel_size, conv.stride, strict=True)]
    weight = conv.weight
    x = torch.randn(1, conv.in_channels, *side, generator=torch.Generator().manual_seed(0)).to(weight)
    y: Tensor = conv(x)
    wanted = nn.functional.batch_norm(
        y, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps
    )
    tolerance = (1e-4 if weight.dtype == torch.float32 else 3e-2) * float(wanted.abs().max().clamp(min=1e-6))
    return bool((fused(x) - wanted).abs().max() <= tolerance)


def _replace(parent: nn.Module, path: str, norm: nn.Module) -> None:
    """Put at ``path`` what is left of a folded BatchNorm: its built-in activation, or nothing."""
    holder_path, _, name = path.rpartition('.')
    holder = parent.get_submodule(holder_path)
    left: nn.Module | None = None
    if _has_builtin_activation(norm):
        rest = [m for m in norm.children() if not isinstance(m, nn.Identity)]  # drop, act
        left = rest[0] if len(rest) == 1 else nn.Sequential(*rest) if rest else None
    if left is None and _is_plain_sequence(holder):
        del holder._modules[name]  # an Identity would cost a call
    else:
        setattr(holder, name, left if left is not None else nn.Identity())


def _splice(sequence: nn.Module) -> None:
    """Put the steps of each ``ConvNormAct`` in a sequence into the sequence itself.

    Only of this class: the suite picks none of them out of a sequence, while others may read each element's output.
    """
    steps: dict[str, nn.Module] = {}
    for name, child in sequence._modules.items():
        assert child is not None
        if isinstance(child, ConvNormAct):
            steps |= {f'{name}_{part}': step for part, step in child.named_children()}
        else:
            steps[name] = child
    sequence._modules = steps  # type: ignore[assignment]
