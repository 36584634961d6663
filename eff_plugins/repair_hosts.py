"""Repair the installed frameworks: ``python -m eff_plugins.repair_hosts``.

Writes the module that the mmaction2 1.2.0 wheel lacks into the environment. Importing ``eff_plugins`` before mmaction
mends the same thing at run time; the repair serves processes in which mmaction is imported first.
"""

from __future__ import annotations

import sys

from .compat.hosts import repair_mmaction


def main() -> int:
    """Repair and report in one line; 1 when the environment cannot be written."""
    try:
        print(f'repair_hosts: {repair_mmaction()}')
    except OSError as error:
        print(f'repair_hosts: cannot write into the environment ({error}); is it yours to change?', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
