"""Slurm's launcher on a CPU: two processes of one job meet over gloo."""

import os
import subprocess
import sys

import pytest

from eff_plugins.compat.distributed import _first_slurm_node

SCRIPT = """
import os
import eff_plugins
from mmengine.dist import all_reduce, get_rank, get_world_size, init_dist
import torch
init_dist('slurm', backend=os.environ.get('BACKEND', 'gloo'))
value = torch.tensor([float(get_rank() + 1)])
all_reduce(value)
print(get_rank(), get_world_size(), os.environ['MASTER_ADDR'], value.item(), flush=True)
torch.distributed.barrier()
os._exit(0)
"""


@pytest.fixture
def cluster(tmp_path):
    """Environment of a slurm job whose only node is this machine; its scontrol is a script."""
    scontrol = tmp_path / 'scontrol'
    scontrol.write_text('#!/bin/sh\n[ "$3" = "node[1-2]" ] || exit 1\necho localhost\necho node2\n')
    scontrol.chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k not in ('MASTER_ADDR', 'MASTER_PORT', 'RANK', 'WORLD_SIZE')}
    return env | dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_NTASKS='2', SLURM_NODELIST='node[1-2]')


def _start(env, rank, **other):
    job = env | dict(SLURM_PROCID=str(rank), **other)
    return subprocess.Popen(
        [sys.executable, '-c', SCRIPT], env=job, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_two_processes_of_a_slurm_job_meet(cluster):
    port = str(29500 + os.getpid() % 2000)
    jobs = [_start(cluster, rank, MASTER_PORT=port) for rank in range(2)]
    outs = [job.communicate(timeout=120) for job in jobs]
    assert [out for out, _ in outs] == ['0 2 localhost 3.0\n', '1 2 localhost 3.0\n'], outs


def test_a_backend_for_gpus_is_refused(cluster):
    _, err = _start(cluster, 0, BACKEND='nccl').communicate(timeout=120)
    assert "set env_cfg.dist_cfg.backend='gloo'" in err


def test_a_start_without_srun_is_named(cluster):
    del cluster['SLURM_NTASKS']
    _, err = _start(cluster, 0).communicate(timeout=120)
    assert 'SLURM_NTASKS is not set; start the command with srun' in err


def test_a_missing_scontrol_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(ValueError, match=r'SLURM_NODELIST=node\[1-2\].*set MASTER_ADDR'):
        _first_slurm_node('node[1-2]')
