"""What is written over at inference, and only there."""

import pytest
import torch

from eff_plugins.dynamic.residual import add_residual
from eff_plugins.models.layers.conv import SqueezeExcite


def test_residual_sum_is_written_over_the_branch_only_without_gradients():
    x, branch = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    wanted = x + branch
    kept = x.clone()
    assert torch.equal(add_residual(x, branch), wanted) and not torch.equal(branch, wanted)
    with torch.no_grad():
        found = add_residual(x, branch)
    assert found is branch and torch.equal(found, wanted) and torch.equal(x, kept)


def test_residual_sum_of_two_types_has_the_wider_one_in_both_modes():
    x, branch = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3).bfloat16()
    with torch.no_grad():
        assert add_residual(x, branch).dtype == torch.float32
    assert add_residual(x, branch).dtype == torch.float32


@pytest.mark.parametrize('inplace', [False, True])
def test_squeeze_excite_writes_over_its_input_only_where_it_may(inplace):
    module = SqueezeExcite(4, 2, inplace=inplace)
    x = torch.randn(2, 4, 5, 5)
    kept = x.clone()
    wanted = module(x)
    assert torch.equal(x, kept) and wanted.requires_grad
    with torch.no_grad():
        found = module(x)
    assert torch.allclose(found, wanted) and torch.equal(x, kept) == (not inplace)
