"""The commands. Each file here parses, calls the library and prints; nothing else.

:mod:`dynamicvit_command` lists them and prints their errors.
"""

from dynamicvit_command import app, main

__all__ = ["app", "main"]
