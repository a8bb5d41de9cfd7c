"""Pictures of the night's page as inline SVG. Colours are variables of the page's style, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tasks.night_facts import Stage

WIDTH = 1080
BAR = 14  # width of a stage's bar
TALL = 210.0  # height of all documents
ROW = 19.0  # between two labels of reasons
COLORS = ("--r0", "--r1", "--r2", "--r3")
MAX_REASONS = 9


def sankey(stages: Sequence[Stage], ends: dict[str, int]) -> str:
    """Documents from step to step, and what each step refuses, by reason. Heights are counts.

    ends: what becomes of those that stay; may be empty.
    """
    total = max(stages[0].num_in, 1)
    scale = TALL / total
    num_columns = len(stages) + (1 if ends else 0)
    gap = (WIDTH - 170.0) / max(num_columns - 1, 1)
    top = 46.0
    parts: list[str] = []
    deepest = 0.0
    for i, stage in enumerate(stages):
        x = i * gap
        height, kept = max(stage.num_in * scale, 1.0), stage.num_out * scale
        color = COLORS[i % len(COLORS)]
        parts.append(_text(x, top - 24, stage.step, "big"))
        parts.append(_text(x, top - 8, f"{stage.num_in:,}", "soft"))
        reasons = _grouped(stage.rejects)
        y, label_y = top + kept, top + TALL + 34.0
        for reason, count in reasons:
            size = max(count * scale, 1.2)
            place = max(label_y - size / 2, label_y - ROW / 2 + 2)
            parts.append(_band(x + BAR, y, y + size, x + 74, place, place + size, color, 0.55))
            parts.append(_text(x + 82, place + size / 2 + 4, f"{reason.replace('_', ' ')}  {count:,}", ""))
            y += size
            label_y = max(label_y + ROW, place + size + ROW / 2 + 2)
        deepest = max(deepest, label_y)
        if i + 1 < len(stages):
            parts.append(
                _band(x + BAR, top, top + kept, x + gap, top, top + stages[i + 1].num_in * scale, "--keep", 0.32)
            )
        parts.append(_bar(x, top, height, "--keep"))
    if ends:
        parts += _ends(ends, (len(stages) - 1) * gap, len(stages) * gap, top, scale)
    elif stages:
        last = stages[-1]
        parts.append(_text((len(stages) - 1) * gap + BAR + 8, top + 16, f"{last.num_out:,} kept", ""))
    height_all = deepest + 4
    return f'<svg viewBox="0 0 {WIDTH} {height_all:.0f}" role="img" aria-label="documents by step and reason">{"".join(parts)}</svg>'


def _ends(ends: dict[str, int], x: float, x_end: float, top: float, scale: float) -> list[str]:
    parts: list[str] = []
    y = y_end = top
    for i, (name, count) in enumerate(ends.items()):
        size = max(count * scale, 1.2)
        color = "--keep" if i == 0 else "--r3"
        parts.append(_band(x + BAR, y, y + size, x_end, y_end, y_end + size, color, 0.32))
        parts.append(_bar(x_end, y_end, size, color))
        parts.append(_text(x_end + BAR + 8, y_end + max(size / 2, 6) + 4, f"{name}  {count:,}", ""))
        y += size
        y_end += max(size, 14.0) + 8
    return parts


def _grouped(rejects: dict[str, int]) -> list[tuple[str, int]]:
    reasons = [(reason, count) for reason, count in rejects.items() if count]
    if len(reasons) <= MAX_REASONS:
        return reasons
    rest = reasons[MAX_REASONS - 1 :]
    return [*reasons[: MAX_REASONS - 1], (f"{len(rest)} other reasons", sum(count for _, count in rest))]


def columns(bars: Sequence[tuple[str, int]], height: int = 190) -> str:
    """A histogram: a name below and a count above each column."""
    width, base, head = 500.0, height - 22.0, 18.0
    most = max((count for _, count in bars), default=1) or 1
    step = width / max(len(bars), 1)
    parts = []
    for i, (name, count) in enumerate(bars):
        size = (base - head) * count / most
        x = i * step + step * 0.12
        wide = step * 0.76 if len(bars) > 3 else min(step * 0.76, 90.0)
        parts.append(
            f'<rect x="{x:.1f}" y="{base - size:.1f}" width="{wide:.1f}" height="{size:.1f}" rx="2" fill="var(--keep)"/>'
        )
        middle = x + wide / 2
        parts.append(_text(middle, height - 6, name, "soft", "middle"))
        if count:
            parts.append(_text(middle, base - size - 5, f"{count:,}", "", "middle"))
    return f'<svg class="small" viewBox="0 0 {width:.0f} {height}" role="img" aria-label="histogram">{"".join(parts)}</svg>'


def loss_curve(points: Sequence[tuple[int, float]], width: int = 500, height: int = 190) -> str:
    """Loss by step: every value faintly, a moving mean over it."""
    steps, losses = [p[0] for p in points], [p[1] for p in points]
    low, high = min(losses), max(losses)
    left, base = 40.0, height - 24.0
    span_x, span_y = max(steps[-1] - steps[0], 1), max(high - low, 1e-9)

    def at(step: int, loss: float) -> str:
        x = left + (width - left - 8) * (step - steps[0]) / span_x
        return f"{x:.1f},{10 + (base - 10) * (high - loss) / span_y:.1f}"

    window = max(1, len(points) // 20)
    means = [
        sum(losses[max(0, i - window) : i + 1]) / len(losses[max(0, i - window) : i + 1]) for i in range(len(losses))
    ]
    faint = " ".join(at(s, v) for s, v in points)
    bold = " ".join(at(s, v) for s, v in zip(steps, means, strict=True))
    marks = [_text(left - 6, 14, f"{high:.2f}", "soft", "end"), _text(left - 6, base, f"{low:.2f}", "soft", "end"),
             _text(left, height - 6, f"step {steps[0]}", "soft"), _text(width - 8, height - 6, f"{steps[-1]:,}", "soft", "end")]  # fmt: skip
    return (
        f'<svg class="small" viewBox="0 0 {width} {height}" role="img" aria-label="training loss">'
        f'<line x1="{left}" y1="{base}" x2="{width - 8}" y2="{base}" stroke="var(--line)"/>'
        f'<polyline points="{faint}" fill="none" stroke="var(--keep)" stroke-opacity=".3"/>'
        f'<polyline points="{bold}" fill="none" stroke="var(--keep)" stroke-width="2.2"/>{"".join(marks)}</svg>'
    )


def _band(x0: float, a0: float, a1: float, x1: float, b0: float, b1: float, color: str, opacity: float) -> str:
    middle = (x0 + x1) / 2
    path = (
        f"M{x0:.1f},{a0:.1f} C{middle:.1f},{a0:.1f} {middle:.1f},{b0:.1f} {x1:.1f},{b0:.1f} L{x1:.1f},{b1:.1f} "
        f"C{middle:.1f},{b1:.1f} {middle:.1f},{a1:.1f} {x0:.1f},{a1:.1f} Z"
    )
    return f'<path d="{path}" fill="var({color})" fill-opacity="{opacity}"/>'


def _bar(x: float, y: float, height: float, color: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{BAR}" height="{height:.1f}" rx="2" fill="var({color})"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{place}>{escape(text)}</text>'
