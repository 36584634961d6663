"""Training on several processes without an accelerator.

mmengine 0.10.7 calls ``torch.cuda.set_device`` whatever the backend, which a CPU build of torch does not have (under slurm it
also divides by the number of GPUs), and gives ``device_ids`` to a model on the CPU, which torch's
``DistributedDataParallel`` refuses.
"""

from __future__ import annotations

import os
import subprocess
import types
from typing import Any

import torch

from .patching import patch_module


def _has_accelerator() -> bool:
    from mmengine.device import is_cuda_available, is_mlu_available, is_musa_available, is_npu_available

    return is_cuda_available() or is_mlu_available() or is_npu_available() or is_musa_available()


def _patch_launcher(module: types.ModuleType) -> None:
    original = getattr(module, '_init_dist_pytorch', None)
    if original is None or getattr(original, 'cpu_ready', False):
        return

    def init_dist_pytorch(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
        if _has_accelerator():
            original(backend, init_backend=init_backend, **kwargs)
            return
        _init_on_cpu(backend, init_backend, **kwargs)

    init_dist_pytorch.cpu_ready = True  # type: ignore[attr-defined]
    module._init_dist_pytorch = init_dist_pytorch  # type: ignore[attr-defined]


def _init_on_cpu(backend: str, init_backend: str, **kwargs: Any) -> None:
    if backend != 'gloo' or init_backend != 'torch':
        raise RuntimeError(
            f"backend={backend!r} needs an accelerator and there is none: set env_cfg.dist_cfg.backend='gloo' "
            f'to train on {os.environ.get("WORLD_SIZE", "several")} CPU processes'
        )
    torch.distributed.init_process_group(backend=backend, **kwargs)


def _patch_slurm(module: types.ModuleType) -> None:
    original = getattr(module, '_init_dist_slurm', None)
    if original is None or getattr(original, 'cpu_ready', False):
        return

    def init_dist_slurm(backend: str, port: int | None = None, init_backend: str = 'torch', **kwargs: Any) -> None:
        if _has_accelerator():
            original(backend, port=port, init_backend=init_backend, **kwargs)
            return
        missing = [name for name in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST') if name not in os.environ]
        if missing:
            raise ValueError(f'launcher slurm: {", ".join(missing)} is not set; start the command with srun')
        rank = os.environ['SLURM_PROCID']
        os.environ.update(RANK=rank, WORLD_SIZE=os.environ['SLURM_NTASKS'])
        os.environ['LOCAL_RANK'] = os.environ.get('SLURM_LOCALID', rank)
        if port is not None:
            os.environ['MASTER_PORT'] = str(port)
        os.environ.setdefault('MASTER_PORT', '29500')
        if 'MASTER_ADDR' not in os.environ:
            os.environ['MASTER_ADDR'] = _first_slurm_node(os.environ['SLURM_NODELIST'])
        _init_on_cpu(backend, init_backend, **kwargs)

    init_dist_slurm.cpu_ready = True  # type: ignore[attr-defined]
    module._init_dist_slurm = init_dist_slurm  # type: ignore[attr-defined]


def _first_slurm_node(nodes: str) -> str:
    """Name of the first node of slurm's compact list, such as ``cpu[01-04]``."""
    try:
        result = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f'slurm: scontrol cannot expand SLURM_NODELIST={nodes} ({error}); set MASTER_ADDR') from error
    return result.stdout.split()[0]


def _patch_wrapper(module: types.ModuleType) -> None:
    wrapper = getattr(module, 'MMDistributedDataParallel', None)
    if wrapper is None or getattr(wrapper.__init__, 'cpu_ready', False):
        return
    original = wrapper.__init__

    def init(self: Any, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        if all(parameter.device.type == 'cpu' for parameter in module.parameters()):
            kwargs.pop('device_ids', None)
        original(self, module, *args, **kwargs)

    init.cpu_ready = True  # type: ignore[attr-defined]
    wrapper.__init__ = init


def install() -> None:
    """Let the launchers ``pytorch`` and ``slurm`` train on CPU processes; with an accelerator nothing changes."""
    patch_module('mmengine.dist.utils', _patch_launcher)
    patch_module('mmengine.dist.utils', _patch_slurm)
    patch_module('mmengine.model.wrappers.distributed', _patch_wrapper)
