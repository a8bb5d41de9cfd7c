"""Pictures of an evaluation's report as inline SVG, in the colours of the page's style: the tests, and confidence."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from training.evaluate.gate_tests import GateTest
from training.evaluate.report_facts import Bin

WIDTH, ROW, LEFT, RIGHT, TOP = 1080, 26, 270, 60, 30
SIDE, EDGE = 380, 44  # of the diagram of reliability
FEWEST = 20  # tokens of a bin that is drawn: the share that is right of fewer jumps about


def forest(rows: Sequence[GateTest], unit: str) -> str:
    """One line a test: the difference as a dot, a line to its bound, the margin as a tick. To the right is worse."""
    values = [v for row in rows for v in (row.difference, row.bound, row.margin) if v is not None] + [0.0]
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.01
    low, high = low - room, high + room
    bottom = TOP + ROW * len(rows)

    def at(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    parts = [
        _line(at(0), TOP - 8, at(0), bottom + 4, "--soft", dashed=True),
        _text(at(0), TOP - 13, "no difference", "soft", "middle"),
    ]
    for place, row in enumerate(rows):
        y = TOP + ROW * (place + 0.5)
        parts.append(_text(0, y + 4, _short(row.name), ""))
        if row.difference is None:
            parts.append(_text(at(0) + 8, y + 4, "nothing to compare", "soft"))
            continue
        color = {"passed": "--good", "failed": "--bad"}.get(row.outcome, "--soft")
        if row.bound is not None:
            parts.append(_line(at(row.difference), y, at(row.bound), y, color, width=2.5))
        if row.outcome != "untested":
            parts.append(_line(at(row.margin), y - 9, at(row.margin), y + 9, "--r1", width=1.6))
        parts.append(f'<circle cx="{at(row.difference):.1f}" cy="{y:.1f}" r="5" fill="var({color})"/>')
    parts.append(_text(LEFT, bottom + 22, f"{low + room:+.4f}", "soft"))
    parts.append(_text(WIDTH - RIGHT, bottom + 22, f"{high - room:+.4f} {unit}, to the right is worse", "soft", "end"))
    return _svg(WIDTH, bottom + 30, f"tests in {unit}", parts)


def reliability(sides: Sequence[tuple[str, str, Sequence[Bin]]]) -> str:
    """Share of right tokens against confidence, (name, colour, bins) of each model. On the diagonal a model is right as often
    as it says; areas of dots are numbers of tokens. Bins of fewer than FEWEST tokens are left out."""
    span = SIDE - 2 * EDGE
    width = SIDE + 150

    def at(x: float, y: float) -> tuple[float, float]:
        return EDGE + span * x, SIDE - EDGE - span * y

    parts = [_line(*at(0, 0), *at(1, 1), "--soft", dashed=True)]
    for share in (0.0, 0.5, 1.0):
        parts += [_line(*at(0, share), *at(1, share), "--line"), _line(*at(share, 0), *at(share, 1), "--line")]
        parts += [_text(at(share, 0)[0], SIDE - EDGE + 18, f"{share:g}", "soft", "middle"),
                  _text(EDGE - 8, at(0, share)[1] + 4, f"{share:g}", "soft", "end")]  # fmt: skip
    parts.append(_text(EDGE + span / 2, SIDE - 8, "confidence", "soft", "middle"))
    parts.append(_text(EDGE - 30, EDGE - 14, "share right", "soft"))
    most = max((b.n for _, _, bins in sides for b in bins), default=1)
    for place, (name, color, every) in enumerate(sides):
        bins = [b for b in every if b.n >= FEWEST]
        points = [at(b.confidence, b.accuracy) for b in bins]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="var({color})" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{2 + 6 * (b.n / most) ** 0.5:.1f}" fill="var({color})" fill-opacity=".75"/>'
            for (x, y), b in zip(points, bins, strict=True)
        ]
        y = EDGE + 20 * place
        parts += [f'<circle cx="{SIDE - 20}" cy="{y}" r="5" fill="var({color})"/>', _text(SIDE - 8, y + 4, name, "")]
    return _svg(width, SIDE, "share of right tokens against confidence", parts, small=True)


def _short(name: str) -> str:
    return name if len(name) <= 38 else name[:37] + "…"


def _svg(width: float, height: float, label: str, parts: Sequence[str], small: bool = False) -> str:
    kind = ' class="small"' if small else ""
    return f'<svg{kind} viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _line(
    x0: float, y0: float, x1: float, y1: float, color: str, width: float = 1, dashed: bool = False
) -> str:  # fmt: skip
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="var({color})" stroke-width="{width:g}"{dashes}/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{place}>{escape(text)}</text>'
