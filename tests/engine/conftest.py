"""Makes ``toy.py`` importable; it is a script as well, for the tests that kill a process."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
