"""Pictures of a search as SVG files: scores of its trials in order, and what each parameter mattered. Same input, same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from training.search.trials import Trial
from training.search_spec import SearchSpec
from training.svg import BEST, INK, LINE, SOFT, WIDTH, WRONG, svg, text

HEIGHT = 320
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 44
PRUNED = "#bf8700"
BAR = 26  # height of a bar with its gap


def history(search: SearchSpec, trials: Sequence[Trial], metric: str) -> str:
    """A dot a trial: filled if it finished, hollow at the score it was pruned at, a cross below if it failed; and the best
    so far as a line."""
    scored = [trial.stages[-1] for trial in trials if trial.stages]
    low, high = (min(scored), max(scored)) if scored else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.5
    low, high = low - margin, high + margin

    def at(number: int, score: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * (number + 0.5) / max(len(trials), 1)
        return x, TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low)

    parts = [text(LEFT, 22, f"{metric} of {len(trials)} trials ({search.method})", INK, size=15)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        score = low + share * (high - low)
        y = at(0, score)[1]
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{LINE}"/>')
        parts.append(text(LEFT - 8, y + 4, f"{score:.4f}", SOFT, "end"))
    parts.append(_best_so_far(search, trials, at))
    for trial in trials:
        parts.append(_dot(trial, *at(trial.number, trial.stages[-1] if trial.stages else low)))
    for number in sorted({0, len(trials) // 2, len(trials) - 1}):
        parts.append(text(at(number, low)[0], HEIGHT - 24, str(number), SOFT, "middle"))
    parts.append(
        text(WIDTH / 2, HEIGHT - 6, "trial   ● finished   ○ pruned   × failed   — best so far", SOFT, "middle")
    )
    return svg(HEIGHT, "scores of trials", parts)


def _best_so_far(search: SearchSpec, trials: Sequence[Trial], at: object) -> str:
    assert callable(at)
    better = max if search.direction == "maximize" else min
    points: list[str] = []
    best: float | None = None
    for trial in trials:
        if trial.value is not None:
            before, best = best, trial.value if best is None else better(best, trial.value)
            x = at(trial.number, best)[0]
            if before is not None:
                points.append(f"{x:.1f},{at(trial.number, before)[1]:.1f}")
        if best is not None:
            points.append("{:.1f},{:.1f}".format(*at(trial.number, best)))
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{BEST}" stroke-width="2"/>'


def _dot(trial: Trial, x: float, y: float) -> str:
    told = f"<title>trial {trial.number}: {trial.state} {escape(trial.why)}</title>"
    match trial.state:
        case "finished":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{INK}">{told}</circle>'
        case "pruned":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#fff" stroke="{PRUNED}" stroke-width="2">{told}</circle>'
        case _:
            return (
                f'<path d="M{x - 4:.1f},{y - 4:.1f} l8,8 m0,-8 l-8,8" stroke="{WRONG}" stroke-width="2">{told}</path>'
            )


def importance_bars(shares: Mapping[str, float]) -> str:
    """A bar a parameter, the largest first."""
    height = TOP + BAR * max(len(shares), 1) + 14
    wide = 8 * max((len(path) for path in shares), default=10)
    parts = [text(12, 22, "importance of parameters (PED-ANOVA, share of 1)", INK, size=15)]
    for place, (path, share) in enumerate(shares.items()):
        y = TOP + BAR * place
        length = (WIDTH - wide - 90) * share
        parts.append(text(wide, y + 14, path, INK, "end"))
        parts.append(f'<rect x="{wide + 10}" y="{y}" width="{length:.1f}" height="18" rx="2" fill="{BEST}"/>')
        parts.append(text(wide + 18 + length, y + 14, f"{share:.3f}", SOFT))
    if not shares:
        parts.append(text(12, TOP + 14, "too few finished trials, or all scored the same", SOFT))
    return svg(height, "importance of parameters", parts)
