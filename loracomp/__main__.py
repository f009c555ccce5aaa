"""`python -m loracomp`, where the script isn't on the PATH."""

from loracomp.cli import main

if __name__ == "__main__":
    main()
