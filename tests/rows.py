"""Rows of a table of tests: some in every run, the others before a release."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def some_or_all(
    argument: str, some: Container[Any], rows: Iterable[Any], ids: Any = None
) -> pytest.MarkDecorator:
    """These rows in every run, all with ``-m extended``."""
    marked = [pytest.param(row, marks=() if row in some else pytest.mark.extended) for row in rows]
    return pytest.mark.parametrize(argument, marked, ids=ids)
