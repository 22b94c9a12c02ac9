"""Horizontal bars with their ranges, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, FIGURES = 900, 300, 220  # px: all, left of the bars, right of them
BAR, ROW, HEAD, MARGIN = 14, 24, 30, 16
GOOD, BAD, RANGE, TARGET = "#4878a8", "#c05a4a", "#222", "#2a8a4a"


@dataclass(frozen=True)
class Bar:
    """One figure: its median is the bar, lowest to highest the line across; `mark` is where the target lies."""

    label: str
    text: str
    median: float
    lowest: float
    highest: float
    mark: float | None = None
    is_good: bool = True


def draw(title: str, panels: Mapping[str, Sequence[Bar]]) -> str:
    """The whole document: a panel per group, each with a scale of its own that begins at 0."""
    parts: list[str] = []
    top = MARGIN + HEAD
    for name, bars in panels.items():
        parts.append(_text(MARGIN, top + HEAD / 2, name, "bold"))
        top += HEAD
        scale = (WIDTH - LABELS - FIGURES) / (max((_extent(bar) for bar in bars), default=0) or 1)
        for bar in bars:
            parts += _row(bar, top, scale)
            top += ROW
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + MARGIN}" '
        f'viewBox="0 0 {WIDTH} {top + MARGIN}" font-family="sans-serif" font-size="12">'
    )
    ground = f'<rect width="{WIDTH}" height="{top + MARGIN}" fill="#fff"/>'
    return "\n".join([head, ground, _text(MARGIN, MARGIN + 12, title, "bold"), *parts, "</svg>", ""])


def _extent(bar: Bar) -> float:
    return max(bar.highest, bar.mark or 0.0)


def _row(bar: Bar, top: float, scale: float) -> list[str]:
    middle = top + BAR / 2
    low, high = LABELS + bar.lowest * scale, LABELS + bar.highest * scale
    parts = [
        _text(LABELS - 8, middle + 4, bar.label, anchor="end"),
        f'<rect x="{LABELS}" y="{top}" width="{max(0.0, bar.median * scale):.1f}" height="{BAR}" '
        f'fill="{GOOD if bar.is_good else BAD}"/>',
        f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {top + 3}v8M{high:.1f} {top + 3}v8" stroke="{RANGE}"/>',
        _text(WIDTH - FIGURES + 10, middle + 4, bar.text),
    ]
    if bar.mark is not None:
        at = LABELS + bar.mark * scale
        parts.append(f'<path d="M{at:.1f} {top - 3}v{BAR + 6}" stroke="{TARGET}" stroke-width="2"/>')
    return parts


def _text(x: float, y: float, text: str, weight: str = "normal", anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" font-weight="{weight}" text-anchor="{anchor}">{escape(text)}</text>'
