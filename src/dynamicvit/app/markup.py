"""A run as HTML: a card for each path, and the pictures in rows that fit any width."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from dynamicvit.app.compared import Side, SideBySide
from dynamicvit.app.pictures import Picture
from dynamicvit.data.class_names import short_name
from dynamicvit.data.mask_files import class_colors
from dynamicvit.plots.page import merges
from dynamicvit.utils.words import percent

#: Colors are Gradio's own variables, which follow light and dark.
STYLE = """
.gradio-container {max-width: 1280px !important; margin: auto}
.dv-cards {display: flex; flex-wrap: wrap; gap: 12px; margin-bottom: 12px}
.dv-card {flex: 1 1 260px; padding: 12px 14px; border-radius: 8px;
  color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); background: var(--background-fill-secondary)}
.dv-card h3 {margin: 0 0 2px; font-size: 1rem; font-weight: 600; color: var(--body-text-color)}
.dv-title {margin: 0 0 2px; font-size: 1.3rem; font-weight: 600}
.dv-cost {display: flex; flex-direction: column; margin-bottom: 6px}
.dv-cost b {font-size: 1.35rem; font-weight: 600; color: var(--body-text-color)}
.dv-faint {opacity: .7; font-size: .86rem}
.dv-about {min-height: 2.7em}
.dv-class {position: relative; margin-top: 5px; padding: 2px 8px; border-radius: 4px;
  display: flex; justify-content: space-between; gap: 8px; font-size: .9rem; overflow: hidden;
  color: var(--body-text-color); background: var(--background-fill-primary)}
.dv-class i {position: absolute; inset: 0 auto 0 0; background: #1f9e9388}
.dv-class span {position: relative; overflow-wrap: anywhere}
.dv-chip {display: inline-block; width: .7em; height: .7em; margin-right: .45em;
  border-radius: 2px}
.dv-row {display: grid; gap: 8px; margin-bottom: 12px;
  grid-template-columns: repeat(var(--columns), minmax(0, 1fr))}
@media (max-width: 760px) {
  .dv-row {grid-template-columns: repeat(auto-fill, minmax(128px, 1fr))}
  .dv-row.dv-wide {grid-template-columns: repeat(auto-fill, minmax(150px, 1fr))}
  .dv-blank {display: none}
}
.dv-row figure {margin: 0}
.dv-row img {width: 100%; border-radius: 6px; display: block; margin: 0;
  border: 1px solid var(--border-color-primary)}
.dv-row figcaption {font-size: .86rem; color: var(--body-text-color); line-height: 1.25;
  margin-bottom: 3px}
#bundled .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
#message:not(:has(.dv-note)) {display: none}
.dv-note {padding: 10px 14px; border-radius: 8px; margin-bottom: 12px; color: #7a1020;
  background: #fde8ea; border: 1px solid #e5a3ab; overflow-wrap: anywhere}
.dark .dv-note {color: #ffd9dd; background: #4a1620; border-color: #8d3644}
"""

#: A row of so few is of large pictures on a narrow screen too.
_FEW = 3


def result(run: SideBySide, rows: Sequence[Sequence[Picture]]) -> str:
    """What the page shows of a run.

    Args:
        run: of an input.
        rows: of :func:`~dynamicvit.app.pictures.pictures_of`.
    """
    maps = run.sparse.logits.ndim == 3
    ratio = "tuned schedule" if run.keep_ratio is None else f"ρ = {run.keep_ratio:g}"
    cheaper = percent(run.sparse.gmacs / run.dense.gmacs, 0)
    kept = ""
    if run.kept:
        last, of = run.kept[-1], run.output.kept[-1].shape[1]
        rest = ", the rest merged" if merges(run.output, len(run.kept) - 1) else ""
        kept = f"keeps {last} of {of} patches{rest}"
    if maps:
        same = f"{percent(run.agreement)} of the places as dense"
    else:
        same = "the dense model's class" if run.agreement else "another class than dense"
    about = [kept, same if run.dense.top else "", "untrained: by chance" * run.untrained]
    drawn = [_row(row, len(row if maps and row is rows[-1] else rows[0])) for row in rows]
    cards = _card("dense", "every patch", run.dense, "", "", maps)
    cards += _card(
        f"{run.method}, {ratio}",
        "; ".join(filter(None, about)),
        run.sparse,
        f"{run.speedup:.2f} × as fast",
        f"{cheaper} of dense",
        maps,
    )
    return f'<div class="dv-cards">{cards}</div>' + "".join(drawn)


def note(message: str) -> str:
    """A message on what can't be shown; empty for none."""
    return f'<div class="dv-note" role="alert">{escape(message)}</div>' if message else ""


def _card(title: str, about: str, side: Side, fast: str, cheap: str, maps: bool) -> str:
    lines = "".join(_class(*each[:3], maps) for each in side.top)
    return (
        f'<section class="dv-card"><h3>{escape(title)}</h3>'
        f'<div class="dv-faint dv-about">{escape(about)}</div><div class="dv-cost">'
        f'<span><b>{side.milliseconds:.1f}</b> ms <span class="dv-faint">{fast}</span></span>'
        f'<span><b>{side.gmacs:.3g}</b> GMACs <span class="dv-faint">{cheap}</span></span>'
        f"</div>{lines}</section>"
    )


def _class(index: int, name: str, share: float, maps: bool) -> str:
    if maps and not share:
        return ""
    chip = ""
    if maps and index:  # the first is left as it is on the map
        color = "#" + class_colors(index + 1)[index].tobytes().hex()
        chip = f'<span class="dv-chip" style="background: {color}"></span>'
    return (
        f'<div class="dv-class" title="{escape(name)}"><i style="width: {100 * share:.1f}%"></i>'
        f"<span>{chip}{escape(short_name(name))}</span><span>{percent(share)}</span></div>"
    )


def _row(pictures: Sequence[Picture], columns: int) -> str:
    """A row of so many columns; one of all but the first begins in the second."""
    blank = '<figure class="dv-blank"></figure>' * (len(pictures) == columns - 1)
    shown = "".join(
        f"<figure><figcaption>{escape(title)}<br>"
        f'<span class="dv-faint">{escape(about)}&nbsp;</span></figcaption>'
        f'<img alt="{escape(title)}" src="{url}"></figure>'
        for title, about, url in pictures
    )
    wide = " dv-wide" if columns <= _FEW else ""
    return f'<div class="dv-row{wide}" style="--columns: {columns}">{blank}{shown}</div>'
