"""Pictures as SVG text, drawn without a library: same input, same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH = 760
INK, SOFT, LINE, BEST, WRONG = "#24292f", "#6e7781", "#d0d7de", "#0969da", "#cf222e"


def svg(height: int, label: str, parts: Sequence[str]) -> str:
    """A white picture WIDTH wide. label: what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'aria-label="{label}" font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def text(x: float, y: float, words: str, color: str, anchor: str = "start", size: int = 12, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" font-size="{size}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
