"""Distributions of live traffic beside those of the reference, as one SVG. Same input, same bytes."""

from __future__ import annotations

from collections.abc import Sequence

from training.svg import BEST, INK, LINE, SOFT, WIDTH, svg, text
from training.watch.report import Distribution

PANEL_HEIGHT, GAP, LEFT, TOP = 170, 30, 10, 46
PANEL_WIDTH = (WIDTH - 2 * LEFT - GAP) / 2
LABELS = 7  # below a panel


def picture(distributions: Sequence[Distribution]) -> str:
    """Two panels a row; bars are shares, so that samples of any size compare. Blue: live; grey: reference."""
    rows = (len(distributions) + 1) // 2
    parts = [
        f'<rect x="{LEFT}" y="12" width="12" height="12" fill="{BEST}"/>', text(LEFT + 18, 23, "traffic", INK),
        f'<rect x="{LEFT + 86}" y="12" width="12" height="12" fill="{LINE}"/>', text(LEFT + 104, 23, "reference", INK),
    ]  # fmt: skip
    for i, one in enumerate(distributions):
        x, y = LEFT + (i % 2) * (PANEL_WIDTH + GAP), TOP + (i // 2) * (PANEL_HEIGHT + GAP)
        parts += _panel(one, x, y)
    return svg(TOP + rows * (PANEL_HEIGHT + GAP), "distributions of traffic and reference", parts)


def _panel(one: Distribution, x: float, y: float) -> list[str]:
    base, head = y + PANEL_HEIGHT - 20, y + 24
    live, reference = _shares(one.live), _shares(one.reference)
    most = max([*live, *reference, 1e-9])
    step = PANEL_WIDTH / max(len(one.labels), 1)
    sizes = f"n = {sum(one.live):,.0f}" + (f", {sum(one.reference):,.0f}" if sum(one.reference) else ", no reference")
    parts = [
        text(x, y + 10, one.name, INK, size=13, bold=True), text(x + PANEL_WIDTH, y + 10, sizes, SOFT, "end", 11),
        f'<line x1="{x:.1f}" y1="{base:.1f}" x2="{x + PANEL_WIDTH:.1f}" y2="{base:.1f}" stroke="{SOFT}"/>',
    ]  # fmt: skip
    for i in range(len(one.labels)):
        left, wide = x + i * step + step * 0.08, step * 0.84
        for share, color, place, width in (
            (reference[i], LINE, left, wide), (live[i], BEST, left + wide * 0.25, wide * 0.5),
        ):  # fmt: skip
            tall = (base - head) * share / most
            if tall >= 0.05:
                parts.append(
                    f'<rect x="{place:.1f}" y="{base - tall:.1f}" width="{width:.1f}" height="{tall:.1f}" fill="{color}"/>'
                )
    every = max(1, -(-len(one.labels) // LABELS))
    for i in range(0, len(one.labels), every):
        parts.append(text(x + (i + 0.5) * step, base + 15, one.labels[i], SOFT, "middle", 11))
    return parts


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [n / total if total else 0.0 for n in counts]
