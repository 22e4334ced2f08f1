"""One input, dense and sparse side by side: as numbers, and as a page in the browser.

:func:`side_by_side` needs no more than the library; the page comes with the extra ``app``.
"""

from dynamicvit.app.choices import Choices
from dynamicvit.app.compared import Side, SideBySide, side_by_side

__all__ = ["Choices", "Side", "SideBySide", "side_by_side"]
