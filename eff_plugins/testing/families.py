"""The image networks by family, for checks that take one member of each."""

from __future__ import annotations

import re

from eff_plugins.models.image.zoo import variants


def families() -> dict[str, list[str]]:
    """Family -> its variants, the one with the fewest multiply-adds first.

    A family is what a name starts with, version included: ``efficientnetv2``, ``efficientnet_lite``, ``resnext``.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(variants(), key=lambda name: variants()[name].macs):
        match = re.match(r'[a-z]+?(v\d)?(_lite)?(?=[\d_]|$)', name)
        found.setdefault(match[0] if match else name, []).append(name)
    return dict(sorted(found.items()))
