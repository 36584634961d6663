"""What the tools share: reading a config, preparing it for this machine, running it, and saying clearly what is wrong."""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from eff_plugins.compat.hosts import EXTRAS, require
from eff_plugins.compat.loading import CheckpointError
from eff_plugins.config_adapter import adapt
from eff_plugins.files import atomic
from eff_plugins.hub.fetch import FetchError, sha256_of

# default scope -> hook that draws predictions, and the visualiser that it needs where the config names none
DRAWING: dict[str, tuple[dict[str, Any], str]] = {
    'mmdet': (
        dict(type='eff_plugins.ImageVisualizationHook', options=dict(pred_score_thr=0.3)),
        'mmdet.DetLocalVisualizer',
    ),
    'mmseg': (dict(type='eff_plugins.ImageVisualizationHook'), 'mmseg.SegLocalVisualizer'),
    'mmaction': (dict(type='eff_plugins.ClipVisualizationHook'), 'Visualizer'),
    'mmdet3d': (dict(type='eff_plugins.BevVisualizationHook'), 'Visualizer'),
    'eff_plugins': (dict(type='eff_plugins.ClsVisualizationHook'), 'eff_plugins.ClsVisualizer'),
}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that train, test and the others have in common."""
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, such as train_cfg.max_epochs=3')
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='distributed launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(
    path: str, work_dir: str | None = None, cfg_options: dict | None = None, launcher: str = 'none'
) -> Config:
    """Read a config, fit it to its backbone (:func:`eff_plugins.adapt`) and to this machine.

    Args:
        path: Config file, or ``eff_plugins::family/name.py`` for one that the package carries.
        work_dir: Folder for logs and checkpoints.
        cfg_options: Overrides with dotted keys.
        launcher: ``none``, ``pytorch`` or ``slurm``.

    Raises:
        FileNotFoundError: There is no such config.
        MissingExtraError: The framework that it is for is not installed.
    """
    cfg = _read_config(path)
    if cfg_options:
        cfg.merge_from_dict(cfg_options)
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(path.split('::')[-1]).stem)
    cfg.launcher = launcher
    if not torch.cuda.is_available() and 'env_cfg' in cfg:
        cfg.env_cfg.dist_cfg = dict(backend='gloo')
    if cfg.get('tensorboard'):
        backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
        cfg.setdefault('visualizer', dict(type='Visualizer')).vis_backends = backends
    _add_hooks(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    return adapt(cfg)


def _read_config(path: str) -> Config:
    """The config behind a path or ``package::path``; a framework that it needs and that is absent is named."""
    own = 'eff_plugins::'
    file = (
        Path(__file__).parents[1] / '.mim' / 'configs' / path.removeprefix(own) if path.startswith(own) else Path(path)
    )
    try:
        if '::' in path and not path.startswith(own):
            from mmengine.hub import get_config

            cfg = get_config(path)
        else:
            if not file.is_file():
                raise FileNotFoundError(f'{path}: no such config file')
            cfg = Config.fromfile(file)
    except ImportError as error:
        for package in EXTRAS:
            if f'{package} ' in f'{error} ':
                require(package, file.name)
        raise
    if cfg.get('default_scope') in EXTRAS:
        require(cfg.default_scope, file.name)
    return cfg


def _add_hooks(cfg: Config) -> None:
    """Give a foreign config what the tools promise: atomic checkpoints, exact resume, clear stops."""
    hook = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook.get('type') == 'CheckpointHook':
        hook['type'] = 'eff_plugins.AtomicCheckpointHook'
    present = [hook['type'] for hook in cfg.get('custom_hooks') or []]
    wanted = [f'eff_plugins.{name}' for name in ('ResumeStateHook', 'FiniteLossHook', 'ClassCountHook')]
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *(dict(type=name) for name in wanted if name not in present)]


def use_amp(cfg: Config) -> None:
    """Mixed precision: bf16 on a CPU, the framework's own on a GPU."""
    cfg.optim_wrapper.type = 'eff_plugins.CpuAmpOptimWrapper' if not torch.cuda.is_available() else 'AmpOptimWrapper'


def show_predictions(cfg: Config, folder: str) -> None:
    """Draw every tested item into ``folder``, one PNG each.

    Raises:
        ValueError: There is no hook that draws for the config's framework.
    """
    scope = cfg.get('default_scope', 'eff_plugins')
    if scope not in DRAWING:
        raise ValueError(f'--show-dir draws for the default scopes {", ".join(DRAWING)}, not for {scope!r}')
    hook, visualizer = DRAWING[scope]
    cfg.default_hooks['visualization'] = dict(hook, out_dir=folder)
    cfg.setdefault('visualizer', dict(type=visualizer))


def check_checkpoint(path: str) -> None:
    """Fail early where a local checkpoint does not exist."""
    if '://' not in path and not Path(path).is_file():
        near = sorted(str(p) for p in Path(path).parent.glob('*.pth')) if Path(path).parent.is_dir() else []
        hint = f'; there are: {", ".join(near)}' if near else ''
        raise FileNotFoundError(f'{path}: no such checkpoint{hint}')


def build_runner(cfg: Config) -> Runner:
    """mmengine's runner for ``cfg`` (``runner_type`` is respected)."""
    if 'runner_type' in cfg:
        from mmengine.registry import RUNNERS

        return RUNNERS.build(cfg)
    return Runner.from_cfg(cfg)


def metrics_record(metrics: dict[str, Any], config: str, checkpoint: str, how: dict[str, Any]) -> dict[str, Any]:
    """A metrics file's content: mmengine's names as they are, plus where the numbers come from.

    Args:
        metrics: Of the evaluators.
        config: As the user named it.
        checkpoint: Path or URL.
        how: ``execution``, ``budget``, ``policy``, and what a dynamic network spent.
    """
    sha256 = sha256_of(Path(checkpoint)) if Path(checkpoint).is_file() else None
    plain = {key: float(value) if hasattr(value, '__float__') else value for key, value in metrics.items()}
    return {**plain, 'config': config, 'checkpoint_sha256': sha256, **how}


def write_json(path: str | Path, content: Any) -> None:
    """Write json atomically."""
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + '\n')


def table(rows: Sequence[Sequence[str]]) -> str:
    """Plain text table; the first row is the heading, numbers are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append('  '.join(cells).rstrip())
    lines.insert(1, '  '.join('-' * w for w in widths))
    return '\n'.join(lines)


def _leave_together() -> None:
    """End a distributed run: all processes at once, and without the interpreter's teardown.

    A process that is torn down while gloo's threads still serve another one now and then dies of SIGABRT ("terminate called
    without an active exception"), which torchrun reports as a failed training.
    """
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def friendly(main: Callable[[], None]) -> None:
    """Run a tool; a user's mistake ends in one line on stderr and exit status 1 (EFF_PLUGINS_DEBUG=1 shows where)."""
    known = (OSError, ValueError, TypeError, ImportError, FetchError, CheckpointError, KeyError, FloatingPointError)
    if os.environ.get('EFF_PLUGINS_DEBUG') == '1':
        main()
        return
    try:
        main()
        if torch.distributed.is_initialized():
            _leave_together()
    except known as error:
        # A loader's worker hands on its whole traceback; the message is in the last line.
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        message = lines[-1] if lines[0].startswith('Caught ') else str(error)
        print(f'error: {message}\n(EFF_PLUGINS_DEBUG=1 shows the traceback)', file=sys.stderr)
        sys.exit(1)
