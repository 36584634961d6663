"""A missing package to compare with: a skip for users, a failure in CI."""

import pytest

from tests.conftest import oracle


@pytest.mark.parametrize(('value', 'outcome'), [('', pytest.skip.Exception), ('1', pytest.fail.Exception)])
def test_what_is_missing_is_skipped_or_fails(value, outcome, monkeypatch):
    monkeypatch.setenv('EFF_PLUGINS_NO_SKIP', value)
    with pytest.raises(outcome, match="No module named 'no_such_library'"):
        oracle('no_such_library')
    assert oracle('pytest') is pytest
