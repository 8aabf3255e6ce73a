"""The rates of the servers side by side, as an SVG picture: bars in panels, readable on light and on dark pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from xml.sax.saxutils import escape

from benchmarks.measure import PER_CPU, Key, Results, Spread
from benchmarks.report import number

WIDTH: Final = 760
_LEFT, _RIGHT, _TOP, _BAR, _GAP, _PANEL = 120, 210, 44, 18, 6, 40

_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .quiet { fill: #59636e }
  .page { fill: #ffffff }
  .bar { fill: #8c959f }
  .ours { fill: #0969da }
  .spread { stroke: #1f2328; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .quiet { fill: #9198a1 }
    .page { fill: #0d1117 }
    .bar { fill: #656c76 }
    .ours { fill: #4493f8 }
    .spread { stroke: #e6edf3 }
  }
"""


def draw(results: Results, panels: Mapping[str, str], *, ours: str = "guerrilla", title: str) -> str:
    """Draw a panel for each scenario (its name, and what is written above it), as far as it was measured.

    Each panel has a scale of its own; the line on a bar reaches from the least to the most of the rounds.
    """
    parts: list[str] = []
    y = _TOP
    for scenario, heading in panels.items():
        rows = {key.subject: Spread.of(values) for key, values in results.values.items() if _shown(key, scenario)}
        if rows:
            parts += _panel(y, heading, rows, ours)
            y += _PANEL + len(rows) * (_BAR + _GAP)
    height = y + 4
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{escape(title, {chr(34): "&quot;"})}">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
            f'<text class="title" x="16" y="26">{escape(title)}</text>',
            *parts,
            "</svg>",
            "",
        ]
    )


def _shown(key: Key, scenario: str) -> bool:
    return key.scenario == scenario and key.metric == PER_CPU


def _panel(top: int, heading: str, rows: Mapping[str, Spread], ours: str) -> Iterator[str]:
    scale = (WIDTH - _LEFT - _RIGHT) / max(row.most for row in rows.values())
    own = rows.get(ours)
    yield f'<text class="quiet" x="16" y="{top + 22}">{escape(heading)}</text>'
    for place, (subject, row) in enumerate(rows.items()):
        y = top + 32 + place * (_BAR + _GAP)
        middle, text = y + _BAR / 2, y + _BAR - 4.5
        kind = "bar ours" if subject == ours else "bar"
        yield f'<text x="{_LEFT - 8}" y="{text}" text-anchor="end">{escape(subject)}</text>'
        yield f'<rect class="{kind}" x="{_LEFT}" y="{y}" width="{row.median * scale:.1f}" height="{_BAR}" rx="2"/>'
        ends = [_LEFT + value * scale for value in (row.least, row.most)]
        yield f'<line class="spread" x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{middle}" y2="{middle}"/>'
        yield f'<text x="{ends[1] + 8:.1f}" y="{text}">{escape(_label(row, own if subject != ours else None))}</text>'


def _label(row: Spread, own: Spread | None) -> str:
    if own is None:
        return number(row.median)
    return f"{number(row.median)}  (ours: {number(own.median / row.median)} ×)"
