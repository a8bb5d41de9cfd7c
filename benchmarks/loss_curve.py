"""Draw the loss of a training as SVG, by tokens: every step thin, a running mean thick.

python -m benchmarks.loss_curve CURVE.jsonl OUT.svg [--title TEXT]
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 56, 20, 44, 46
SMOOTHING = 0.9  # share of the past in the running mean
TICKS = 6

Points = Sequence[tuple[float, float]]


def running_mean(losses: Sequence[float]) -> list[float]:
    """Exponential mean, corrected for its start (arXiv:1412.6980, section 3)."""
    means, total, weight = [], 0.0, 0.0
    for loss in losses:
        total = SMOOTHING * total + (1 - SMOOTHING) * loss
        weight = SMOOTHING * weight + (1 - SMOOTHING)
        means.append(total / weight)
    return means


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from low to high."""
    rough = (high - low) / TICKS or 1.0
    power = 10.0 ** int(f"{rough:e}".split("e")[1])
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first = -(-low // step) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]


def short(number: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def draw(tokens: Sequence[float], losses: Sequence[float], title: str) -> str:
    """An SVG picture; losses in nats a token."""
    x_end, low, high = tokens[-1], min(losses), max(losses)

    def x(value: float) -> float:
        return LEFT + value / x_end * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low or 1.0) * (HEIGHT - TOP - BOTTOM)

    def line(values: Sequence[float], style: str) -> str:
        points = " ".join(f"{x(t):.1f},{y(v):.1f}" for t, v in zip(tokens, values, strict=True))
        return f'<polyline points="{points}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">',
        "<style>text {font-size: 12px} text.title {font-size: 15px}</style>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text class="title" x="{LEFT}" y="24" fill="#222">{escape(title)}</text>',
    ]
    for value in ticks(low, high):
        at = f"{y(value):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at}" text-anchor="end" dy="4" fill="#555">{value:g}</text>')
    for value in ticks(0, x_end):
        parts.append(
            f'<text x="{x(value):.1f}" y="{HEIGHT - 26}" text-anchor="middle" fill="#555">{short(value)}</text>'
        )
    means = running_mean(losses)
    parts += [
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end" fill="#555">tokens</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 8}" fill="#555">loss, nats a token; mean at the end {means[-1]:.3f}</text>',
        line(losses, 'stroke="#9bbcdc" stroke-width="0.8"'),
        line(means, 'stroke="#1f5a96" stroke-width="2"'),
        "</svg>\n",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--title", default="Training loss")
    asked = parser.parse_args()
    steps = [json.loads(line) for line in asked.curve.read_text().splitlines()]
    tokens = list(itertools.accumulate(step["tokens"] for step in steps))
    asked.out.write_text(draw(tokens, [step["loss"] for step in steps], asked.title))
    print(f"{asked.out}: {len(steps)} steps, {tokens[-1]:,} tokens")


if __name__ == "__main__":
    main()
