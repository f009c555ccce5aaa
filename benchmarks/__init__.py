"""Measures the figures that the docs report. Libraries and jobs are generated as in the tests, so the folder of the
tests is put on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
