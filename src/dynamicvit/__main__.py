"""``python -m dynamicvit``: the command, for launchers that start a module (torchrun)."""

from dynamicvit.cli import main

if __name__ == "__main__":
    main()
