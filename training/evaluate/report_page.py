"""The report of an evaluation as one HTML file: candidate beside champion, and why the gate decided as it did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from training.evaluate.gate_tests import GateTest
from training.evaluate.report_charts import forest, reliability
from training.evaluate.report_facts import Changed, EvaluationFacts, Side
from training.metrics.score import Score
from training.page_style import page

NAMES = {
    "bits_per_byte": "bits per byte",
    "perplexity": "perplexity of a token",
    "token_accuracy": "next token right",
    "ece": "calibration error (ECE)",
    "adaptive_ece": "the same, bins of equal mass",
    "brier": "Brier score",
    "noisy_bits_per_byte": "bits per byte with slips",
    "noise_loss": "lost to slips, bits per byte",
}
OURS, THEIRS = "--r3", "--r0"


def page_of(facts: EvaluationFacts) -> str:
    """The whole page as text."""
    header = f"<h1>Evaluation</h1><p>night of {escape(facts.night)}: <span class=mono>{escape(facts.candidate.address)}</span>"
    if facts.champion is not None:
        header += f" against <span class=mono>{escape(facts.champion.address)}</span>"
    parts = [
        _decision(facts), _tiles(facts), _scores(facts), _tests(facts), _slices(facts),
        _two(_calibration(facts), _candidates(facts)),
        _changed("Documents that lost most", facts.lost), _changed("Documents that gained most", facts.gained),
    ]  # fmt: skip
    return page(f"evaluation, night {facts.night}", header + "</p>", parts)


def _two(left: str, right: str) -> str:
    """Side by side where there are both."""
    return f'<div class="two"><div>{left}</div><div>{right}</div></div>' if left and right else left + right


def told(score: Score | None, digits: int = 4) -> str:
    """Value and 95 % interval."""
    if score is None:
        return ""
    if not math.isfinite(score.value):
        return f"undefined, {score.n_invalid} of {score.n} without a finite score"
    interval = f" [{score.low:.{digits}f}, {score.high:.{digits}f}]" if math.isfinite(score.low) else ""
    return f"{score.value:.{digits}f}{interval}"


def _decision(facts: EvaluationFacts) -> str:
    kind, word = ("promoted", "Promote") if facts.decision == "promote" else ("", "Keep the champion")
    if facts.champion is None and not kind:
        word = "Not promoted"
    return f'<section class="decision {kind}"><p><b>{word}</b>: {escape(facts.reason)}.</p></section>'


def _tiles(facts: EvaluationFacts) -> str:
    tiles = [(f"{facts.candidate.bits_per_byte:.4f}", "bits per byte, candidate")]
    if facts.champion is not None:
        tiles.append((f"{facts.champion.bits_per_byte:.4f}", "bits per byte, champion"))
        first = next((t for t in facts.tests if t.kind == "primary" and t.difference is not None), None)
        if first is not None:
            bound = "unknown" if first.bound is None else f"{first.bound:+.4f}"
            tiles.append((f"{first.difference:+.4f}", f"difference, at most {bound}; {first.margin:+g} allowed"))
    tiles += [
        (f"{facts.gzip_bits_per_byte:.4f}", "bits per byte, gzip -9"),
        (f"{facts.candidate.num_documents:,}", "documents"),
    ]
    inside = "".join(f'<div class="tile"><b>{value}</b><span>{escape(what)}</span></div>' for value, what in tiles)
    return f'<div class="tiles">{inside}</div>'


def _scores(facts: EvaluationFacts) -> str:
    ours, theirs = _all_scores(facts.candidate), _all_scores(facts.champion)
    if not ours:
        return ""
    rows = [
        (name, told(score), told(theirs.get(name)), f"{score.n:,}") for name, score in ours.items()
    ]  # fmt: skip
    note = "With 95 % intervals by documents drawn anew; benchmarks, by items. The intervals of two models overlap far sooner than their difference is in doubt: the tests compare them on the same documents."
    return f'<section><h2>Scores</h2>{_table(("score", "candidate", "champion", "n"), rows, facts.champion is not None)}<p class="note">{note}</p></section>'


def _all_scores(side: Side | None) -> dict[str, Score]:
    if side is None:
        return {}
    return {NAMES.get(name, name): s for name, s in side.scores.items()} | {
        f"benchmark {name} ({s.name})": s for name, s in side.benchmarks.items()
    }


def _table(names: tuple[str, str, str, str], rows: Sequence[tuple[str, str, str, str]], both: bool) -> str:
    """name, candidate, champion (where there is one), n"""
    keep = [0, 1, 2, 3] if both else [0, 1, 3]
    head = "".join(f"<th{' class=n' if i else ''}>{names[i]}" for i in keep)
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' if i else ''}>{escape(row[i])}" for i in keep) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _tests(facts: EvaluationFacts) -> str:
    if not facts.tests:
        return ""
    pictures = []
    for unit in ("bits per byte", "score"):
        drawn = [t for t in facts.tests if t.unit == unit and t.kind in ("primary", "benchmark", "slice")]
        if drawn:
            pictures.append(forest(drawn, unit))
    rows = "".join(map(_test_row, facts.tests))
    head = "".join(
        f"<th{' class=n' if i else ''}>{name}"
        for i, name in enumerate(
            ("test", "difference", "bound", "allowed", "p", "p, of all", "McNemar p", "n", "outcome")
        )
    )
    note = (
        "Above 0 is worse. A bound is the upper end of what the candidate may have lost; for a slice the lower end of what it has. "
        "Red ticks: what is allowed. Superiority is claimed, and harm in a slice found, by p-values adjusted for their number."
    )
    return (
        f"<section><h2>Tests of the gate</h2>{''.join(pictures)}<details><summary>The same in numbers, and all others"
        f'</summary><table><tr>{head}</tr>{rows}</table></details><p class="note">{note}</p></section>'
    )


def _test_row(row: GateTest) -> str:
    color = {"passed": "good", "shown": "good", "failed": "bad"}.get(row.outcome, "")
    cells = [
        "" if v is None else format(v, f)
        for v, f in ((row.difference, "+.4f"), (row.bound, "+.4f"), (row.margin, "g"), (row.p, ".3g"), (row.p_adjusted, ".3g"),
                     (row.mcnemar_p, ".3g"))
    ]  # fmt: skip
    inside = "".join(f"<td class=n>{cell}" for cell in [*cells, f"{row.n:,}" if row.n else ""])
    return f'<tr><td>{escape(row.name)}{inside}<td class=n><span class="badge {color}">{row.outcome}</span></tr>'


def _slices(facts: EvaluationFacts) -> str:
    ours = facts.candidate.slices
    if not ours:
        return ""
    theirs: Mapping[str, Score] = facts.champion.slices if facts.champion else {}
    rows = [(name, told(score), told(theirs.get(name)), f"{score.n:,}") for name, score in ours.items()]
    return f"<section><h2>Slices, bits per byte</h2>{_table(('slice', 'candidate', 'champion', 'documents'), rows, bool(theirs))}</section>"


def _calibration(facts: EvaluationFacts) -> str:
    sides = [("candidate", OURS, facts.candidate.reliability)]
    if facts.champion is not None and facts.champion.reliability:
        sides.append(("champion", THEIRS, facts.champion.reliability))
    if not facts.candidate.reliability:
        return ""
    note = "Next tokens of held-out documents by the probability of the likeliest one. Below the dashed line a model is surer than it is right; areas are numbers of tokens, bins of fewer than 20 are left out."
    return f'<section><h2>Does the model know when it is right?</h2>{reliability(sides)}<p class="note">{note}</p></section>'


def _candidates(facts: EvaluationFacts) -> str:
    """The picture is our own output, drawn from escaped names."""
    if not facts.pareto:
        return ""
    return (
        f'<section><h2>Candidates by size and quality</h2><div class="paper">{facts.pareto}</div>'
        f'<p class="note">{escape(facts.choice)}</p></section>'
    )


def _changed(title: str, documents: Sequence[Changed]) -> str:
    if not documents:
        return ""
    inside = "".join(
        f'<blockquote><div class="mono">{escape(d.doc_id)}: {d.theirs:.3f} to {d.ours:.3f} bits per byte '
        f"({d.ours - d.theirs:+.3f}), {d.num_bytes:,} bytes</div>{escape(d.text)}</blockquote>"
        for d in documents
    )
    note = "Champion to candidate, by bits of the whole document. Beginnings of texts; e-mail addresses and longer numbers are masked."
    return f'<section><h2>{title}</h2>{inside}<p class="note">{note}</p></section>'
