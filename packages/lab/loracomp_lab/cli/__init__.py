"""The lab's commands; `loracomp` finds them by the entry points in pyproject.toml."""
