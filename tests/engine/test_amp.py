"""bf16 on a CPU: the forward pass runs in bf16, parameters stay fp32, and training makes progress."""

import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from torch import nn

from eff_plugins.engine import amp
from eff_plugins.registry import OPTIM_WRAPPERS


def wrapper(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build({'type': 'CpuAmpOptimWrapper', 'optimizer': optimizer, **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason='the CPU branch')
def test_bf16_forward_and_fp32_parameters():
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optim = wrapper(model, clip_grad={'max_norm': 10})
    x = torch.randn(64, 4)
    y = x.sum(1, keepdim=True)
    history = []
    for _ in range(40):
        with optim.optim_context(model):
            out = model(x)
            assert out.dtype == torch.bfloat16
            loss = ((out - y) ** 2).mean()
        optim.update_params(loss)
        history.append(float(loss.detach()))
    assert model.weight.dtype == torch.float32 and history[-1] < 0.01 * history[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason='the CPU branch')
def test_state_of_a_gpu_run_loads():
    model = nn.Linear(4, 1)
    optim = wrapper(model)
    optim.load_state_dict({**optim.state_dict(), 'loss_scaler': {'scale': 65536.0}})


@pytest.mark.skipif(torch.cuda.is_available(), reason='the CPU branch')
def test_fp16_is_refused_on_a_cpu():
    with pytest.raises(ValueError, match="dtype='float16'.*bfloat16"):
        wrapper(nn.Linear(1, 1), dtype='float16')


def test_accelerator_gets_the_wrapper_of_mmengine(monkeypatch):
    monkeypatch.setattr(amp, 'is_cuda_available', lambda: True)
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    optim = wrapper(nn.Linear(1, 1), dtype='float16', loss_scale=512.0)
    assert type(optim) is AmpOptimWrapper and optim.cast_dtype == torch.float16
