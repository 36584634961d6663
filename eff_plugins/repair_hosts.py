"""Repair the installed frameworks: ``python -m eff_plugins.repair_hosts``.

Writes the module that the mmaction2 1.2.0 wheel lacks, and the operator names that torchvision lacks beside a CPU build of
torch, into the environment. Importing ``eff_plugins`` first mends the same things at run time; the repair serves processes
in which mmaction, timm or torchvision is imported first.
"""

from __future__ import annotations

import sys

from .compat.hosts import repair_mmaction
from .compat.torchvision_ops import repair_torchvision


def main() -> int:
    """Repair and report, a line each; 1 when the environment cannot be written."""
    try:
        for repair in (repair_mmaction, repair_torchvision):
            print(f'repair_hosts: {repair()}')
    except OSError as error:
        print(f'repair_hosts: cannot write into the environment ({error}); is it yours to change?', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
