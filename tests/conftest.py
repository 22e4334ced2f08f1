"""Tests share what is in ``in_every_test.py``; a process that only hands them out goes without.

That is the first one with ``-n``: the others start when it is ready, and torch would take it
seconds.
"""

from importlib import import_module

import pytest

pytest.register_assert_rewrite("in_every_test")


def pytest_configure(config: pytest.Config) -> None:
    """In each process that runs tests."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.register(import_module("in_every_test"))
        # Many tests want a model and not what it keeps; methods/test_untrained.py has it an error.
        config.addinivalue_line("filterwarnings", "ignore::dynamicvit.errors.UntrainedWarning")
