"""Loads base models and encoders, tokenises, scores, generates and batches; `model.cpu` tunes all of it for CPUs."""

import os
import sys

# By default, transformers (5.25) replaces layers on a GPU by compiled code that it downloads from the hub when it loads
# or trains a model, if the package kernels is installed. Nothing downloaded may run here, and answers may not depend on
# whether the hub can be reached. It doesn't always ask this variable, so the package can't be imported either.
if os.environ.setdefault("USE_HUB_KERNELS", "NO") == "NO":
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
