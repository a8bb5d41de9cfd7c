"""Which candidates no other beats in both bytes (or latency) and quality, and their picture as SVG. Same input, same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from training.compress_spec import BudgetSpec
from training.svg import BEST, INK, LINE, SOFT, WIDTH, WRONG, svg, text

HEIGHT = 380
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 44, 52


class Point(Protocol):
    """A candidate, as far as its picture needs it."""

    @property
    def name(self) -> str: ...
    @property
    def bits_per_byte(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    def cost(self, minimize: str) -> float: ...


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Whether no other point is at most as large in both numbers and smaller in one."""
    return [
        not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        for point in points
    ]


def picture(candidates: Sequence[Point], best: str, within: frozenset[str], spec: BudgetSpec) -> str:
    """Cost to the right, bits per byte upwards, with intervals; the line joins those that none beats. Filled: `within` the budget."""
    candidates = [c for c in candidates if math.isfinite(c.low) and math.isfinite(c.high)]
    told = [(c.cost(spec.minimize), c.bits_per_byte) for c in candidates]
    xs, ys = [x for x, _ in told], [y for c in candidates for y in (c.low, c.high)]
    right, (low, high) = max(xs) * 1.08, (min(ys), max(ys))
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def at(x: float, y: float) -> tuple[float, float]:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / right, TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)

    unit = "MB on disk" if spec.minimize == "bytes" else "milliseconds a written token"
    scale = 1e6 if spec.minimize == "bytes" else 1e-3
    parts = [
        text(LEFT, 24, f"{len(candidates)} candidates; within {spec.max_loss:g} bits per byte: filled", INK, size=15)
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = low + share * (high - low)
        parts.append(
            f'<line x1="{LEFT}" y1="{at(0, y)[1]:.1f}" x2="{WIDTH - RIGHT}" y2="{at(0, y)[1]:.1f}" stroke="{LINE}"/>'
        )
        parts.append(text(LEFT - 8, at(0, y)[1] + 4, f"{y:.3f}", SOFT, "end"))
        parts.append(text(at(share * right, low)[0], HEIGHT - 32, f"{share * right / scale:.3g}", SOFT, "middle"))
    parts.append(text((LEFT + WIDTH) / 2, HEIGHT - 10, f"{unit} against bits per byte", SOFT, "middle"))
    joined = sorted(point for point, on in zip(told, front(told), strict=True) if on)
    points = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in joined)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{SOFT}" stroke-dasharray="4 3"/>')
    for candidate, point in zip(candidates, told, strict=True):
        color = BEST if candidate.name == best else INK if candidate.name in within else WRONG
        ends = at(point[0], candidate.low)[1], at(point[0], candidate.high)[1]
        parts += _marked(candidate.name, at(*point), ends, color, candidate.name in within)
    return svg(HEIGHT, "candidates by cost and quality", parts)


def _marked(name: str, place: tuple[float, float], ends: tuple[float, float], color: str, filled: bool) -> list[str]:
    x, y = place
    side, shift = ("end", -8) if x > WIDTH - 150 else ("start", 8)
    return [
        f'<line x1="{x:.1f}" y1="{ends[0]:.1f}" x2="{x:.1f}" y2="{ends[1]:.1f}" stroke="{color}" stroke-opacity="0.5"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color if filled else "white"}" stroke="{color}" stroke-width="1.5"/>',
        text(x + shift, y - 6, name, color, side, bold=color == BEST),
    ]
