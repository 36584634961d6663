"""What ``import eff_plugins`` needs, and how its types are found from every framework; each in a fresh process."""

import importlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from eff_plugins import registry
from eff_plugins.compat import MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
HOSTS = ('mmcv', 'mmdet', 'mmseg', 'mmaction', 'mmdet3d')
# Optional libraries that the suite or a framework uses. mmengine itself imports cv2, yapf, rich and matplotlib.
OPTIONAL = ('sklearn', 'scipy', 'torchvision', 'timm', 'safetensors', 'numba', 'pycocotools', 'tensorboard', 'open3d')

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Block())
# as in an environment that lacks them: no spec is found, nothing is raised
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {blocked!r} else find_spec(name, package)
"""


def run(code: str, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    prefix = BLOCK.format(blocked=blocked) if blocked else ''
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-W', 'ignore', '-c', prefix + textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def test_import_needs_torch_mmengine_and_numpy_only():
    result = run('import eff_plugins, eff_plugins.registry; print(eff_plugins.__version__)', (*HOSTS, *OPTIONAL))
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '0.1.0'


def test_import_loads_no_framework_that_is_there():
    code = f'import eff_plugins, eff_plugins.registry, sys; print([m for m in {HOSTS + OPTIONAL} if m in sys.modules])'
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '[]'


@pytest.mark.parametrize(
    ('blocked', 'remedy'), [('mmengine', r"pip install 'eff_plugins[engine]'"), ('pkg_resources', "'setuptools<82'")]
)
def test_import_without_mmengine_says_what_to_install(blocked, remedy):
    if blocked == 'pkg_resources':  # mmengine of one version imports it, of another it does not
        code = 'import mmengine.config.utils'
        if run(code, (blocked,)).returncode == 0:
            pytest.skip('this mmengine imports without pkg_resources')
    result = run('import eff_plugins', (blocked,))
    assert result.returncode == 1
    assert remedy in result.stderr.strip().splitlines()[-1]


def test_absent_hosts_are_named_with_their_extra_and_hide_no_other_type():
    """Every row of the table: found without any framework, or an error that names framework, extra and command."""
    code = """
        from eff_plugins import registry
        for name, types in registry.TYPES.items():
            child = next(r for r in vars(registry).values() if isinstance(r, registry.LazyRegistry) and r.name == name)
            for type_name in types:
                try:
                    child.parent.get('eff_plugins.' + type_name)
                    print(type_name, 'found')
                except Exception as error:
                    print(type_name, type(error).__name__, error)
    """
    result = run(code, HOSTS)
    assert result.returncode == 0, result.stderr
    outcome = dict(line.split(' ', 1) for line in result.stdout.splitlines())
    for type_name, text in outcome.items():
        known = text == 'found' or (
            text.startswith('MissingExtraError') and 'is not installed. Install it with: ' in text
        )
        assert known, f'{type_name}: {text}'
    assert outcome['InvertedResidualNet'] == outcome['ImageClassifier'] == outcome['AtomicCheckpointHook'] == 'found'
    for type_name, host, extra in [
        ('DigitDetDataset', 'mmdet', 'det'),
        ('DigitSegDataset', 'mmseg', 'seg'),
        ('DigitMotionDataset', 'mmaction', 'action'),
        ('RawKittiDataset', 'mmdet3d', 'det3d'),
    ]:
        text = outcome[type_name]
        assert f'eff_plugins.{type_name} needs {host}' in text and f"pip install 'eff_plugins[{extra}]'" in text


def test_table_of_types_names_what_exists():
    """With all frameworks: each row's module imports and defines the type."""
    for name, types in registry.TYPES.items():
        for type_name, module in types.items():
            try:
                found = importlib.import_module(module, 'eff_plugins')
            except MissingExtraError as error:
                pytest.skip(str(error))
            assert hasattr(found, type_name), f'{name} {type_name}: {module} does not define it'


@pytest.mark.parametrize('host', ['mmengine', 'mmdet', 'mmseg', 'mmdet3d', 'mmaction'])
def test_type_builds_from_the_registry_of(host):
    """Nothing of the suite is imported before. mmaction's needs the environment that the set-up repaired."""
    if importlib.util.find_spec(host) is None:
        pytest.skip(f'{host} is not installed')
    if host == 'mmaction' and importlib.util.find_spec('mmaction.models') is None:
        pytest.skip('mmaction2 is incomplete')
    if host == 'mmaction':
        drn = Path(importlib.util.find_spec('mmaction').origin).parent / 'models' / 'localizers' / 'drn' / 'drn.py'
        if not drn.is_file():
            pytest.skip('mmaction2 is not repaired: python -m eff_plugins.repair_hosts')
    code = f"""
        from {host}.registry import MODELS
        model = MODELS.build(dict(type='eff_plugins.InvertedResidualNet', out_indices=(3, 4)))
        print(type(model).__module__, len(model.out_channels))
    """
    result = run(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[-2:] == ['eff_plugins.models.image.inverted_residual', '2']


def test_mmaction_imports_unrepaired_after_the_suite(tmp_path):
    """At run time, importing the suite first is enough: the finder serves the module that the wheel lacks."""
    if importlib.util.find_spec('mmaction') is None:
        pytest.skip('mmaction2 is not installed')
    code = 'import eff_plugins; from mmaction.models.localizers.drn.drn import DRN; DRN()'
    result = run(code)
    assert 'NotImplementedError: DRN is missing' in result.stderr.strip().splitlines()[-1]
