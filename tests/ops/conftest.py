"""What tests of the operators share."""

import pytest

from eff_plugins.ops import native


@pytest.fixture(params=[None, *native._INSTRUCTION_SETS], ids=str)
def instruction_set(request, monkeypatch):
    """Plain torch, then every instruction set that this processor has."""
    monkeypatch.setenv('EFF_PLUGINS_NATIVE', request.param or '0')
    native.kernels.cache_clear()
    try:
        if request.param and native.kernels() is None:
            pytest.skip('no C++ compiler')
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native.kernels.cache_clear()
