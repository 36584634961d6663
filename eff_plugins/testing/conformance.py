"""What every dynamic network has to promise, as checks that a table of cases goes through.

A suite of another project writes a table of its own::

    TABLE = {'MyNet': Case(dict(type='MyNet'), dict(type='MyStaticNet'))}

    @pytest.mark.parametrize(('label', 'name'), conformance.pairs(TABLE))
    def test_conformance(label, name):
        conformance.check(TABLE[label], name)

    def test_two_processes():
        conformance.check_ddp('my_package.my_table:TABLE')

The suite's own table is :data:`eff_plugins.testing.dynamic_types.DYNAMIC`.
"""

from __future__ import annotations

import copy
import os
import pickle
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from eff_plugins import dynamic
from eff_plugins.deploy import Preparation, prepare
from eff_plugins.dynamic.module import policy_prefixes
from eff_plugins.dynamic.recorder import Entry, Stats
from eff_plugins.profiling.macs import count_macs
from eff_plugins.testing.case import Case, build, tensors, varied
from eff_plugins.testing.oracles import randomise

EXACT, CLOSE, HALF = 1e-5, 1e-4, 0.05  # of max|y|, in fp32 and in bf16
# A sample may leave a block out, a ReLU may be dead: what no draw of weights and decisions reaches is cut off
DRAWS = 12


@torch.no_grad()
def run(net: nn.Module, execution: str, x: Any) -> list[Tensor]:
    """Copies of what ``net`` returns under an execution."""
    return [tensor.clone() for tensor in tensors(dynamic.set_execution(net, execution)(x))]


def difference(got: list[Tensor], want: list[Tensor]) -> float:
    """Largest max|a - b| / max|b| of any pair.

    Raises:
        AssertionError: The numbers of tensors, or their shapes, differ.
    """
    shapes = [[tuple(tensor.shape) for tensor in side] for side in (got, want)]
    assert shapes[0] == shapes[1] and shapes[0], f'tensors of {shapes[0]} are compared with {shapes[1]}'
    pairs = zip(got, want, strict=True)
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-12) for a, b in pairs)


def _equal(got: list[Tensor], want: list[Tensor], tolerance: float, what: str) -> None:
    gap = difference(got, want)
    assert gap <= tolerance, f'{what}: they differ by {gap:.2e} of max|y|, more than {tolerance:g}'


def policy_keys(case: Case, net: nn.Module) -> set[str]:
    """Keys of the state dict that lie in a module with ``is_policy``, or in one that the case names."""
    prefixes = (*policy_prefixes(net), *(f'{name}.' for name in case.policy))
    return {key for key in net.state_dict() if key.startswith(prefixes)}


def check_dense(case: Case) -> None:
    """Everything on is the dense reference, in all three executions."""
    net, x = build(case.model), case.inputs(case.shape)
    reference = build(case.reference)
    policy = policy_keys(case, net)
    reference.load_state_dict({key: value for key, value in net.state_dict().items() if key not in policy})
    want = [tensor.clone() for tensor in tensors(reference(x))]
    _equal(run(net, 'dense', x), want, EXACT, 'dense execution and the dense reference')
    case.select(net, 'all')
    for execution in ('masked', 'sparse'):
        _equal(run(net, execution, x), want, EXACT, f'{execution} execution with everything on and the dense reference')


def check_keys(case: Case) -> None:
    """Keys and shapes of the state dict are the reference's and the policy's."""
    net = build(case.model)
    policy = policy_keys(case, net)
    got = {key: tuple(value.shape) for key, value in net.state_dict().items() if key not in policy}
    want = {key: tuple(value.shape) for key, value in build(case.reference).state_dict().items()}
    wrong = sorted({item[0] for item in got.items() ^ want.items()})
    assert not wrong, f'keys or shapes that differ from the dense reference and are no policy (is_policy): {wrong[:5]}'


def _agree(case: Case, odd: bool) -> None:
    net, x = varied(case, odd)
    before = [tensor.clone() for tensor in tensors(x)]
    dense, masked = run(net, 'dense', x), run(net, 'masked', x)
    with dynamic.record(net) as stats:
        sparse = run(net, 'sparse', x)
    _equal(sparse, masked, CLOSE, 'sparse and masked execution')
    assert all(torch.equal(a, b) for a, b in zip(tensors(x), before, strict=True)), 'the input was overwritten'
    assert difference(masked, dense) > CLOSE, 'what was decided changes nothing: the case tests nothing'
    assert not _alike(stats.entries), 'all samples have the same decisions: the case must make them decide differently'


def _alike(entries: list[Entry]) -> bool:
    """Whether all samples decided the same; a module may report a batch in one entry, or in one a sample."""
    calls: dict[Any, list[Tensor]] = {}
    for number, entry in enumerate(entries):
        for name in ('density', 'mask', 'choice'):
            what = getattr(entry, name)
            if what is not None:
                call = number if len(what) > 1 else None
                calls.setdefault((entry.name, name, call, what.shape[1:]), []).append(what)
    whole = [torch.cat(parts) for parts in calls.values()]
    return all(torch.equal(what, what[:1].expand_as(what)) for what in whole)


def check_sparse(case: Case) -> None:
    """Masked equals sparse in evaluation where the samples of a batch decide differently."""
    _agree(case, odd=False)


def check_odd_size(case: Case) -> None:
    """The same at an odd input size."""
    _agree(case, odd=True)


def check_samples(case: Case) -> None:
    """A sample gets the same in a batch as alone."""
    net, x = varied(case)
    whole = run(net, 'sparse', x)
    for i in range(len(x)):
        alone = run(net, 'sparse', x[i : i + 1])
        # what is computed for a batch of one may be rounded differently
        _equal([tensor[i : i + 1] for tensor in whole], alone, CLOSE, f'sample {i} in a batch and alone')


def check_selections(case: Case) -> None:
    """Masked equals sparse, and the reported multiply-adds are right, with everything on and with nothing on."""
    net, x = varied(case)
    for kind in ('all', 'none'):
        case.select(net, kind)
        _equal(run(net, 'sparse', x), run(net, 'masked', x), CLOSE, f'sparse and masked execution, {kind} on')
        _counted(net, x)


def _counted(net: nn.Module, x: Any) -> float:
    """Executed multiply-adds a sample in sparse execution, after comparing them with what is reported."""
    dynamic.set_execution(net, 'sparse')
    with dynamic.record(net) as stats, torch.no_grad():
        net(x)
    total = dynamic.network_macs(net, lambda: run_once(net, x), stats.samples)
    executed = count_macs(net, lambda: run_once(net, x)).get('', 0) / stats.samples
    reported = float(total - stats.saved_macs())
    assert abs(reported - executed) <= 0.01 * executed, f'{reported:.0f} MACs reported, {executed:.0f} executed'
    return executed


@torch.no_grad()
def run_once(net: nn.Module, x: Any) -> None:
    """Run without gradients."""
    net(x)


def check_macs(case: Case) -> None:
    """Reported multiply-adds are those that are executed, within 1 %, and fewer than the dense network's."""
    net, x = varied(case)
    executed = _counted(net, x)
    total = dynamic.network_macs(net, lambda: run_once(net, x), len(tensors(x)[0]))
    assert executed < 0.97 * total, f'{executed:.0f} of {total:.0f} MACs are executed: nothing is saved'


def check_masked_macs(case: Case) -> None:
    """Masked execution computes the dense network and what is reported beside it, which `BudgetHook` relies on."""
    net, x = build(case.model), case.inputs(case.shape)
    dynamic.set_execution(net, 'masked')
    total = dynamic.network_macs(net, lambda: run_once(net, x), len(tensors(x)[0]))
    net.train()
    with dynamic.record(net) as stats:
        counted = count_macs(net, lambda: net(x)).get('', 0)
    want = total * stats.samples + stats.masked_beyond()
    assert abs(want - counted) <= 0.01 * counted, f'{want:.0f} MACs reported for masked execution, {counted} executed'


def check_budget(case: Case) -> None:
    """What is executed is the budget, as nearly as the case's ``step``, and a lower budget executes less."""
    net, x = varied(case)
    total = dynamic.network_macs(net, lambda: run_once(net, x), len(tensors(x)[0]))
    shares = dynamic.calibrate(net, [x]).shares
    top, floor = min(shares[0], 1.0), shares[-1]
    budgets = [floor + (top - floor) * part for part in (0.85, 0.5, 0.15)]
    spent = []
    for budget in budgets:
        dynamic.set_budget(net, budget)
        spent.append(_counted(net, x) / total)
    missed = max(abs(share - budget) for share, budget in zip(spent, budgets, strict=True)) / (top - floor)
    told = f'budgets {_rounded(budgets)} execute {_rounded(spent)} of the MACs'
    assert missed <= case.step, f'{told}: up to {missed:.0%} of the range off, more than {case.step:.0%}'
    assert spent[0] > spent[1] > spent[2], told


def _rounded(shares: list[float]) -> str:
    return ', '.join(f'{share:.3f}' for share in shares)


def _pull(out: list[Tensor], stats: Stats | None) -> Tensor:
    """A loss that pulls at the outputs and, given statistics, at the costs.

    At each number with a force of its own: the squares of normalised numbers have a sum that nothing changes.
    """
    total: Any = sum((tensor * torch.randn_like(tensor)).mean() for tensor in out)
    # some decide nothing in training
    return total - stats.saved_macs() * 1e-6 if stats is not None and stats.entries else total


Gradients = dict[str, Tensor | None]


def _gradients(case: Case, costs: bool) -> Iterator[Gradients]:
    """Parameter -> gradient in training, from the outputs alone or from the costs, too, for several draws of weights."""
    net, x = build(case.model), case.inputs(case.shape)
    dynamic.set_execution(net, 'masked').train()
    for seed in range(DRAWS):
        randomise(net, seed)
        torch.manual_seed(seed)
        net.zero_grad()
        with dynamic.record(net) as stats:
            out = tensors(case.train(net, x))
        _pull(out, stats if costs else None).backward()
        yield {name: p.grad for name, p in net.named_parameters() if p.requires_grad}


def _never_reached(draws: Iterator[Gradients], names: Container[str] | None = None) -> list[str]:
    """Those, of ``names``, with no gradient or one of zeros in all draws."""
    left: list[str] | None = None
    for grads in draws:
        left = [name for name in grads if names is None or name in names] if left is None else left
        left = [name for name in left if not _pulls(grads[name])]
        if not left:
            break
    return left or []


def _pulls(grad: Tensor | None) -> bool:
    return grad is not None and bool(grad.any())


def _usable(draws: Iterator[Gradients]) -> Iterator[Gradients]:
    """The draws, after a look at each: a gradient for every parameter, and a finite one."""
    for grads in draws:
        missing = [name for name, grad in grads.items() if grad is None]
        assert not missing, f'{len(missing)} parameters get no gradient: {missing[:5]}'
        broken = [name for name, grad in grads.items() if grad is not None and not grad.isfinite().all()]
        assert not broken, f'gradients that are not finite: {broken[:5]}'
        yield grads


def check_gradients(case: Case) -> None:
    """In training outputs and costs give every parameter a finite gradient, which is not always zero."""
    dead = _never_reached(_usable(_gradients(case, costs=True)))
    assert not dead, f'{len(dead)} parameters always get a gradient of zero: {dead[:5]}'


def check_task_gradients(case: Case) -> None:
    """In training the outputs alone give every parameter of a policy a gradient: it learns from the task, not from costs."""
    policy = policy_keys(case, build(case.model))
    cut_off = _never_reached(_gradients(case, costs=False), policy)
    assert not cut_off, f'{len(cut_off)} parameters of policies get no gradient from the outputs: {cut_off[:5]}'


def check_copies(case: Case) -> None:
    """A deep copy and an unpickled one compute the same."""
    net, x = varied(case)
    want = run(net, 'sparse', x)
    _equal(run(copy.deepcopy(net), 'sparse', x), want, EXACT, 'a deep copy and the network')
    _equal(run(pickle.loads(pickle.dumps(net)), 'sparse', x), want, EXACT, 'an unpickled copy and the network')


def check_deployed(case: Case) -> None:
    """The form in which it is deployed (BatchNorm folded, channels-last, weights packed) computes the same."""
    net, x = varied(case)
    how = Preparation(prepack=True)
    deployed = run(prepare(net, how), 'sparse', how.inputs(x))
    _equal(deployed, run(net, 'masked', x), CLOSE, 'sparse execution of the deployed form and masked execution')


def check_bf16(case: Case) -> None:
    """bfloat16 in, finite bfloat16 out, masked and sparse; with everything on it is near what float32 gives."""
    net, x = varied(case)
    low = copy.deepcopy(net).bfloat16()
    for execution in ('masked', 'sparse'):
        out = run(low, execution, x.bfloat16())
        kinds = {str(tensor.dtype) for tensor in out}
        assert kinds == {'torch.bfloat16'}, f'{execution} execution in bfloat16 gives {", ".join(sorted(kinds))}'
        assert all(tensor.isfinite().all() for tensor in out), f'{execution} execution in bfloat16 is not finite'
    for each in (net, low):
        case.select(each, 'all')  # else rounding decides otherwise here and there
    want = run(net, 'masked', x)
    for execution in ('masked', 'sparse'):
        out = [tensor.float() for tensor in run(low, execution, x.bfloat16())]
        _equal(out, want, HALF, f'{execution} execution in bfloat16 and in float32')


CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix('check_'): value for name, value in list(globals().items()) if name.startswith('check_')
}


def check(case: Case, name: str) -> None:
    """Run one check.

    Args:
        case: The network.
        name: A key of ``CHECKS``.

    Raises:
        AssertionError: The network does not keep the promise; the message says which and by how much.
        ValueError: An unknown check, or an exception without a reason.
    """
    unknown = sorted({name, *case.exceptions} - {*CHECKS, 'ddp'})
    if unknown:
        raise ValueError(f'unknown conformance check {", ".join(unknown)}; known: {", ".join(CHECKS)}, ddp')
    if not all(case.exceptions.values()):
        raise ValueError('each exception from a conformance check needs its reason')
    if name not in case.exceptions:
        CHECKS[name](case)


def pairs(table: Mapping[str, Case]) -> Iterator[tuple[str, str]]:
    """(label, check) of all that apply."""
    return ((label, name) for label, case in table.items() for name in CHECKS if name not in case.exceptions)


def check_ddp(table: str, processes: int = 2) -> None:
    """Training steps in several processes over gloo, without ``find_unused_parameters``, for a whole table at once.

    Args:
        table: ``'module:NAME'`` of a mapping label -> :class:`Case`, which each process imports.
        processes: Their number.

    Raises:
        torch.multiprocessing.ProcessRaisedException: A network fails; the message names it.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_train, (table, processes, os.path.join(folder, 'meet')), processes)


def _train(rank: int, table: str, processes: int, meeting: str) -> None:
    torch.set_num_threads(1)
    module, _, name = table.partition(':')
    cases: Mapping[str, Case] = getattr(import_module(module), name)
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{meeting}', rank=rank, world_size=processes, timeout=timedelta(minutes=5)
    )
    for label, case in cases.items():
        if 'ddp' not in case.exceptions:
            try:
                _steps(case, rank)
            except Exception as error:
                raise RuntimeError(f'{label}: {error}') from error
    torch.distributed.barrier()
    os._exit(0)  # without the teardown, in which gloo's threads may abort


class _Training(nn.Module):
    """What DistributedDataParallel wraps: a network that is called as it is in training."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.net = dynamic.set_execution(build(case.model), 'masked')
        self.train_step = case.train

    def forward(self, x: Any) -> Any:
        return self.train_step(self.net, x)


def _steps(case: Case, rank: int) -> None:
    net = _Training(case).train()
    wrapped = nn.parallel.DistributedDataParallel(net)
    torch.manual_seed(rank)
    for _ in range(2):  # the second step fails where a parameter of the first got no gradient
        with dynamic.record(net) as stats:
            out = tensors(wrapped(case.inputs(case.shape)))
        net.zero_grad()
        _pull(out, stats).backward()
    mine = torch.stack([p.grad.double().sum() for p in net.parameters() if p.grad is not None])
    theirs = mine.clone()
    torch.distributed.broadcast(theirs, 0)
    assert torch.allclose(mine, theirs, rtol=1e-6, equal_nan=True), 'the processes have different gradients'
