"""Convolution at listed positions: equal to the whole convolution there, and nothing else is touched."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from eff_plugins.ops import native
from eff_plugins.ops.rows import ACTIVATIONS, RowConv, conv2d_rows
from eff_plugins.profiling.latency import threads

# in, out, kernel, stride, padding, dilation, groups, H, W
SHAPES = {
    '1x1': (5, 7, 1, 1, 0, 1, 1, 6, 9),
    '3x3': (16, 48, 3, 1, 1, 1, 1, 7, 5),
    'strided': (8, 33, 3, 2, 1, 1, 1, 9, 8),
    'deep': (250, 40, 3, 1, 1, 1, 1, 7, 5),
    'projection': (8, 32, 1, 2, 0, 1, 1, 7, 7),
    'dilated': (4, 16, 3, 1, 2, 2, 1, 8, 8),
    'depthwise': (37, 37, 3, 1, 1, 1, 37, 7, 6),
    'wide depthwise': (130, 130, 5, 2, 2, 1, 130, 9, 9),
}


def _case(name, act, batch=2, last=torch.channels_last):
    channels, filters, kernel, stride, pad, dilation, groups, height, width = SHAPES[name]
    torch.manual_seed(0)
    weight = torch.randn(filters, channels // groups, kernel, kernel)
    conv = RowConv(weight, torch.randn(filters), (stride,) * 2, (pad,) * 2, (dilation,) * 2, groups, act)
    x = torch.randn(batch, channels, height, width).to(memory_format=last)
    high, wide = conv.out_size(height, width)
    out = torch.randn(batch, filters, high, wide).to(memory_format=last)
    return x, conv, out


def _dense(x, conv, residual, scale):
    y = F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    if scale is not None:
        y = y * scale
    return ACTIVATIONS[conv.act](y if residual is None else y + residual)


def _expected(x, conv, rows, out, residual, scale=None):
    """``out`` with the whole convolution's values at ``rows``."""
    on = torch.zeros(out.shape[0] * out.shape[2] * out.shape[3], dtype=torch.bool)
    on[rows.long()] = True
    return torch.where(on.view(out.shape[0], 1, *out.shape[2:]), _dense(x, conv, residual, scale), out)


@pytest.mark.parametrize('act', ACTIVATIONS)
@pytest.mark.parametrize('name', SHAPES)
def test_listed_positions_equal_the_whole_convolution(name, act, instruction_set):
    x, conv, out = _case(name, act)
    positions = out.shape[0] * out.shape[2] * out.shape[3]
    for rows in (torch.randperm(positions)[: positions // 2].int(), torch.arange(positions), torch.zeros(0).int()):
        for residual, scale in product((None, torch.randn_like(out)), (None, torch.randn_like(out[:, :1]))):
            got = out.clone(memory_format=torch.preserve_format)
            want = _expected(x, conv, rows, out, residual, scale)
            assert conv2d_rows(x, conv, rows, got, residual, scale) is got
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_residual_may_be_the_output(instruction_set):
    x, conv, out = _case('3x3', 'relu')
    rows = torch.arange(0, out.shape[0] * out.shape[2] * out.shape[3], 3)
    scale = torch.randn_like(out[:, :1])
    want = _expected(x, conv, rows, out, out.clone(), scale)
    torch.testing.assert_close(conv2d_rows(x, conv, rows, out, out, scale), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', SHAPES)
def test_threads_share_the_rows(name):
    x, conv, out = _case(name, 'relu', batch=9)
    rows = torch.randperm(out[:, 0].numel())[1:].int()
    scale = torch.randn_like(out[:, :1])
    want = conv2d_rows(x, conv, rows, out.clone(memory_format=torch.preserve_format), out, scale)
    with threads(3):
        got = conv2d_rows(x, conv, rows, out.clone(memory_format=torch.preserve_format), out, scale)
    assert torch.equal(got, want)


@pytest.mark.parametrize('name', SHAPES)
def test_gradients_equal_those_of_the_whole_convolution(name):
    x, conv, out = _case(name, 'relu', batch=1, last=torch.contiguous_format)
    residual, scale = torch.randn_like(out), torch.randn_like(out[:, :1])
    rows = torch.randperm(out.shape[2] * out.shape[3])[:9]
    leaves = [t.requires_grad_() for t in (x, conv.weight, conv.bias, residual, scale, out)]
    weight = torch.randn_like(out)
    got = torch.autograd.grad((conv2d_rows(x, conv, rows, out, residual, scale) * weight).sum(), leaves)
    want = torch.autograd.grad((_expected(x, conv, rows, out, residual, scale) * weight).sum(), leaves)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_contiguous_maps_and_other_types_run_too():
    x, conv, out = _case('3x3', 'relu', last=torch.contiguous_format)
    rows = torch.arange(5)
    want = _expected(x, conv, rows, out, None)
    torch.testing.assert_close(conv2d_rows(x, conv, rows, out.clone()), want, rtol=1e-4, atol=1e-4)
    double = RowConv(conv.weight.double(), conv.bias.double(), conv.stride, conv.padding, act='relu')
    got = conv2d_rows(x.double(), double, rows, out.double())
    torch.testing.assert_close(got.float(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['3x3', 'strided', 'depthwise'])
def test_what_is_counted_is_what_is_executed(name, instruction_set):
    x, conv, out = _case(name, 'relu')
    with FlopCounterMode(display=False) as counter:
        conv2d_rows(x, conv, torch.arange(7), out)
    assert counter.get_total_flops() == 2 * 7 * conv.weight.numel()


def test_a_changed_weight_needs_a_new_conv_but_packing_is_done_once(instruction_set):
    x, conv, out = _case('3x3', None)
    for _ in range(2):
        conv2d_rows(x, conv, torch.arange(3), out)
    assert len(conv._packed) == (instruction_set is not None)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (dict(x=torch.zeros(1, 3, 7, 5)), ValueError, r'x is .*must be \(B, 16'),
        (dict(out=torch.zeros(2, 48, 7, 6)), ValueError, 'out is'),
        (dict(residual=torch.zeros(2, 48, 7, 6)), ValueError, 'residual is'),
        (dict(scale=torch.zeros(2, 48, 7, 5)), ValueError, r'scale is .*must be \(2, 1, 7, 5\)'),
        (dict(rows=torch.zeros(3)), ValueError, 'rows is'),
        (dict(rows=torch.tensor([70])), IndexError, 'run from 70 to 70; out has 70 positions'),
        (dict(rows=torch.tensor([-1])), IndexError, 'run from -1'),
        (dict(out=torch.zeros(2, 48, 7, 5, dtype=torch.double)), ValueError, 'one type'),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    x, conv, out = _case('3x3', None)
    arguments = dict(x=x, conv=conv, rows=torch.arange(3), out=out, residual=None) | change
    with pytest.raises(error, match=message):
        conv2d_rows(**arguments)


def test_bad_convolutions_are_named():
    with pytest.raises(ValueError, match='groups=2'):
        RowConv(torch.zeros(4, 2, 3, 3), torch.zeros(4), groups=2)
    with pytest.raises(ValueError, match="act='gelu'"):
        RowConv(torch.zeros(4, 2, 3, 3), torch.zeros(4), act='gelu')
    with pytest.raises(ValueError, match='bias'):
        RowConv(torch.zeros(4, 2, 3, 3), torch.zeros(3))


def _forget():
    native._kernels.cache_clear()
    native._library.cache_clear()


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv('EFF_PLUGINS_NATIVE', raising=False)
    _forget()
    monkeypatch.setattr(native, 'compiler', lambda: None)
    assert native.kernels() is None and 'no C++ compiler' in capsys.readouterr().err
    _forget()
    broken = tmp_path / 'c++'
    broken.write_text('#!/bin/sh\necho "x.cpp: error: nothing works" >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setattr(native, 'compiler', lambda: str(broken))
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    assert native.kernels() is None and 'nothing works' in capsys.readouterr().err
    assert not list((tmp_path / 'native').iterdir())
    _forget()


@pytest.mark.parametrize(('option', 'gone'), [('-fopenmp', b'GOMP_parallel'), ('-DBF16', b'convolve_portable_bf16')])
def test_a_compiler_that_cannot_do_all_makes_a_smaller_library(option, gone, monkeypatch, tmp_path):
    real = native.compiler()
    if real is None:
        pytest.skip('no C++ compiler')
    old = tmp_path / 'c++'
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *{option}*) echo "error: unsupported option" >&2; exit 1;; esac\nexec {real} "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv('EFF_PLUGINS_CACHE', str(tmp_path))
    monkeypatch.setattr(native, 'VARIANTS', [v for v in native.VARIANTS if v.level == 'portable'])  # takes less long
    library = native.build(str(old)).read_bytes()
    assert b'convolve_portable' in library and gone not in library


def test_an_instruction_set_that_is_not_there_is_named(monkeypatch):
    if native.compiler() is None:
        pytest.skip('no C++ compiler')
    _forget()
    with pytest.raises(ValueError, match="'mmx' is not one of portable"):
        native.kernels('mmx')
    _forget()
