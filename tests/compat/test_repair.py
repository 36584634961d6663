"""Writing the module that the mmaction2 wheel lacks."""

import importlib
import sys

import pytest

from eff_plugins import repair_hosts
from eff_plugins.compat.hosts import repair_mmaction


@pytest.fixture
def fake_mmaction(tmp_path, monkeypatch):
    """A package `mmaction` whose localizers lack `drn`, found before the real one."""
    for folder in ('', 'models', 'models/localizers'):
        (tmp_path / 'mmaction' / folder).mkdir(exist_ok=True)
        (tmp_path / 'mmaction' / folder / '__init__.py').touch()
    loaded = {name: module for name, module in sys.modules.items() if name.partition('.')[0] == 'mmaction'}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path / 'mmaction' / 'models' / 'localizers' / 'drn'
    for name in [name for name in sys.modules if name.partition('.')[0] == 'mmaction']:
        del sys.modules[name]
    sys.modules.update(loaded)


def test_missing_module_is_written_and_says_what_it_is(fake_mmaction):
    assert 'wrote' in repair_mmaction()
    drn = importlib.import_module('mmaction.models.localizers.drn.drn')
    assert drn.__file__ == str(fake_mmaction / 'drn.py')
    with pytest.raises(NotImplementedError, match='missing from the mmaction2 1.2.0 wheel'):
        drn.DRN()


def test_complete_mmaction_is_left_alone(fake_mmaction):
    fake_mmaction.mkdir()
    (fake_mmaction / 'drn.py').write_text('real = True\n')
    assert repair_mmaction() == 'mmaction2 is complete'
    assert (fake_mmaction / 'drn.py').read_text() == 'real = True\n'


def test_interrupted_repair_is_completed(fake_mmaction):
    fake_mmaction.mkdir()
    (fake_mmaction / '__init__.py').touch()
    repair_mmaction()
    assert sorted(p.name for p in fake_mmaction.iterdir()) == ['__init__.py', 'drn.py']


def test_environment_that_cannot_be_written_gives_one_line(fake_mmaction, capsys):
    fake_mmaction.touch()  # a file where the folder should be
    assert repair_hosts.main() == 1
    assert 'cannot write into the environment' in capsys.readouterr().err
