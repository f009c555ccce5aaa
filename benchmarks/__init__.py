"""Measures what the docs report. Libraries and jobs are made up as in the tests, whose folder is put on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
