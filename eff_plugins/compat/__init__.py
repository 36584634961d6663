"""The only home of fixes for third-party versions; each file gives its reasons.

``apply()`` runs once, when ``eff_plugins`` is imported.
"""

from .hosts import MissingExtraError, require

__all__ = ['MissingExtraError', 'apply', 'require']


def apply() -> None:
    """Install every run-time fix; calling it again changes nothing."""
    from . import distributed, hosts, loading, mmcv_ops, mmdet_heads, torchvision_ops

    hosts.register_config_package()
    hosts.register_checkpoint_prefixes()
    hosts.mend_mmaction()
    loading.install()
    distributed.install()
    mmcv_ops.install()
    mmdet_heads.install()
    torchvision_ops.install()
