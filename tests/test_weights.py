"""What other libraries say, made short."""

from __future__ import annotations

import pytest

from dynamicvit.weights import first_line


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("broken\nand more", "broken"),
        ("", "OSError"),
        ("No directory. Internal error. " + "very " * 50 + "corrupted. ", None),
        ("very " * 50, ("very " * 40).strip() + "…"),
        ("x" * 300, "x" * 200 + "…"),
    ],
)
def test_the_first_line_ends_with_a_sentence_or_says_that_it_goes_on(
    said: str, short: str | None
) -> None:
    assert first_line(OSError(said)) == (short or "No directory. Internal error.")
