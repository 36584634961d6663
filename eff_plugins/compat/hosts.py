"""How the suite finds the OpenMMLab frameworks, and what it mends in them at run time."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
import types
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

from ..files import atomic
from .patching import patch_module

# import name -> extra of this package that installs it
EXTRAS = {
    'mmengine': 'engine',
    'mmcv': 'det',
    'mmdet': 'det',
    'mmseg': 'seg',
    'mmaction': 'action',
    'mmdet3d': 'det3d',
    'sklearn': 'data',
    'cv2': 'data',
    'safetensors': 'engine',
    'timm': 'timm',
    'torchvision': 'timm',
    'onnx': 'onnx',
    'onnxscript': 'onnx',
    'onnxruntime': 'onnx',
}


class MissingExtraError(ImportError):
    """A framework or library that a type needs is not installed; the message names the extra that brings it."""


def require(name: str, needed_by: str) -> types.ModuleType:
    """Import ``name`` (for instance ``'mmdet'`` or ``'mmcv.ops'``) or say which extra installs it.

    Args:
        name: Module to import.
        needed_by: What needs it, as the user knows it, for the message.

    Raises:
        MissingExtraError: The package is absent, or its own import fails; the message gives the command.
    """
    package = name.partition('.')[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = EXTRAS.get(package, 'all')
        absent = importlib.util.find_spec(package) is None
        reason = f'{package} is not installed' if absent else f'{name} does not import ({error})'
        raise MissingExtraError(
            f'{needed_by if needed_by.endswith(".py") else f"eff_plugins.{needed_by}"} needs {package}, '
            f"but {reason}. Install it with: pip install 'eff_plugins[{extra}]'"
            + (' and then: python -m eff_plugins.build_mmcv' if extra in ('det', 'seg', 'action', 'det3d') else '')
        ) from error


def _serve_config_folder(module: types.ModuleType) -> None:
    """Let mmengine look for the suite's configs beside the package that is imported.

    It looks in site-packages, where an editable installation (PEP 660) puts a pointer and no ``.mim`` folder.
    """
    original = getattr(module, 'get_installed_path', None)
    if original is None or hasattr(original, 'knows_eff_plugins'):
        return

    def get_installed_path(package: str) -> str:
        return str(Path(__file__).parents[1]) if package == 'eff_plugins' else original(package)

    get_installed_path.knows_eff_plugins = True  # type: ignore[attr-defined]
    module.get_installed_path = get_installed_path  # type: ignore[attr-defined]


def register_config_package() -> None:
    """Make ``_base_ = 'eff_plugins::...'`` known to mmengine, which asserts that a package is in its table.

    Raises:
        MissingExtraError: mmengine is absent or does not import; the message gives the command.
    """
    try:
        from mmengine.config.utils import MODULE2PACKAGE
    except ModuleNotFoundError as error:
        if error.name == 'pkg_resources':
            remedy = "mmengine needs pkg_resources, which setuptools 82 dropped: pip install 'setuptools<82'"
        elif error.name == 'mmengine':
            remedy = (
                "pip install 'eff_plugins[engine]' (or onedl-mmengine, the maintained fork of the same import name)"
            )
        else:
            remedy = f'mmengine does not import: pip install {error.name}'
        raise MissingExtraError(f'eff_plugins needs mmengine. {remedy}') from error

    MODULE2PACKAGE.setdefault('eff_plugins', 'eff_plugins')
    _serve_config_folder(importlib.import_module('mmengine.config.config'))


# prefix as the regular expression that mmengine matches it by -> its loader in eff_plugins.hub.load
PREFIXES = {
    'pypi://': 'load_from_pypi',
    'timm://': 'load_from_timm',
    'tv://': 'load_from_tv',
    r'https\+sha256://': 'load_from_hashed',
}


def _register_prefixes(module: types.ModuleType) -> None:
    def lazy(name: str) -> Callable[..., dict]:
        def load(filename: str, map_location: object = None) -> dict:
            return getattr(importlib.import_module('eff_plugins.hub.load'), name)(filename, map_location)

        load.__name__ = name  # mmengine logs it
        return load

    for prefix, name in PREFIXES.items():
        module.CheckpointLoader.register_scheme(prefix, lazy(name), force=True)  # type: ignore[attr-defined]


def register_checkpoint_prefixes() -> None:
    """Add the suite's own checkpoint prefixes; mmengine's stay as they are for other configs in the process.

    Done when mmengine's loader is imported: importing it here would cost seconds (all of mmengine.runner).
    """
    patch_module('mmengine.runner.checkpoint', _register_prefixes)


class _DrnStandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Supplies ``mmaction.models.localizers.drn``, which the mmaction2 1.2.0 wheel lacks and yet imports.

    open-mmlab/mmaction2#2714. Put at the END of ``sys.meta_path``, so that a real module always wins.
    """

    PACKAGE = 'mmaction.models.localizers.drn'

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname not in (self.PACKAGE, f'{self.PACKAGE}.drn'):
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=fullname == self.PACKAGE)

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ != self.PACKAGE:
            exec(DRN_STAND_IN, module.__dict__)


DRN_STAND_IN = '''"""Stand-in for a module that the mmaction2 1.2.0 wheel lacks (open-mmlab/mmaction2#2714)."""


class DRN:
    """Says that this localiser is not in the wheel, instead of making all of mmaction2 fail to import."""

    def __init__(self, *args, **kwargs):
        raise NotImplementedError('DRN is missing from the mmaction2 1.2.0 wheel; install mmaction2 from source')
'''


def repair_mmaction() -> str:
    """Write :data:`DRN_STAND_IN` into an installed mmaction2 that lacks the module; returns what was done.

    Raises:
        OSError: The environment cannot be written.
    """
    spec = importlib.util.find_spec('mmaction')
    if spec is None or spec.origin is None:
        return 'mmaction2 is not installed, nothing to repair'
    target = Path(spec.origin).parent / 'models' / 'localizers' / 'drn'
    if (target / 'drn.py').is_file():
        return 'mmaction2 is complete'
    # drn.py last: only with it does the package count as complete
    for name, text in (('__init__.py', ''), ('drn.py', DRN_STAND_IN)):
        with atomic(target / name) as partial:
            partial.write_text(text)
    return f'wrote the module that the mmaction2 wheel lacks: {target}'


def mend_mmaction() -> None:
    """Let mmaction2's models import at run time (see :class:`_DrnStandIn`)."""
    if not any(isinstance(finder, _DrnStandIn) for finder in sys.meta_path):
        sys.meta_path.append(_DrnStandIn())
