"""``python -m dynamicvit``: the command, for launchers that start a module (torchrun)."""

from dynamicvit_command import main

if __name__ == "__main__":
    main()
