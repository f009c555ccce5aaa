"""Runs the command line as `python -m loracomp`, for when the script `loracomp` isn't on the PATH."""

from loracomp.cli import main

if __name__ == "__main__":
    main()
