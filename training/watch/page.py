"""The page of one look: one self-contained HTML file. No scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import math
from html import escape

from training.page_style import page
from training.watch.compare import Check
from training.watch.picture import picture
from training.watch.report import WatchFacts

COLUMNS = ("check", "measure", "value", "interval", "threshold", "by chance", "p", "p, all checks", "n", "outcome")


def page_of(facts: WatchFacts) -> str:
    """The whole page as text."""
    header = (
        f"<h1>{escape(facts.pipeline)}: live traffic</h1><p>{escape(facts.start)} to {escape(facts.end)}, answered by "
        f"{escape(facts.model)}, against {escape(facts.against)}</p>"
    )
    checks = (
        f"<section><h2>Checks</h2>{_table(facts.checks)}"
        '<p class="note">An alarm wants both: a value above its threshold, and a p-value over all checks at or below alpha.'
        " By chance: the value that windows without a difference have on average, already taken off where it says so in the"
        " documentation.</p></section>"
    )
    pictures = f"<section><h2>Distributions</h2>{picture(facts.distributions)}</section>"
    return page(f"{facts.pipeline}: traffic until {facts.end}", header, (_status(facts), checks, pictures))


def words_of(facts: WatchFacts) -> str:
    """One sentence for people: the page, the terminal, the event."""
    about = f"{facts.num_requests:,} requests, {facts.num_errors:,} failed"
    if facts.status == "alarm":
        return f"differs in {', '.join(facts.alarms)} ({about})"
    if facts.status == "too few":
        return f"too few requests to tell ({about})"
    return f"as expected ({about})"


def _status(facts: WatchFacts) -> str:
    kind = {"alarm": " failed", "too few": ""}.get(facts.status, " promoted")  # colours of the house
    notes = []
    if facts.other_models:
        others = ", ".join(f"{address} ({n:,})" for address, n in facts.other_models.items())
        notes.append(f"Not counted, as other models answered: {others}.")
    if facts.num_unreadable:
        notes.append(f"{facts.num_unreadable} lines of traffic could not be read.")
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    files = "1 replica" if facts.replicas == 1 else f"{facts.replicas} replicas"
    return f'<section class="decision{kind}"><p>Traffic {escape(words_of(facts))}, from {files}.</p>{told}</section>'


def _table(checks: tuple[Check, ...]) -> str:
    head = "".join(f'<th class="{"n" if 2 <= i <= 8 else ""}">{name}</th>' for i, name in enumerate(COLUMNS))
    return f"<table><tr>{head}</tr>{''.join(map(_row, checks))}</table>"


def _row(check: Check) -> str:
    interval = "" if math.isnan(check.low) else f"{check.low:.3f} to {check.high:.3f}"
    cells = (
        number(check.value), interval, number(check.threshold), number(check.by_chance), probability(check.p),
        probability(check.p_adjusted), f"{check.n:,}",
    )  # fmt: skip
    kind = {"ok": "good", "drift": "bad"}.get(check.outcome, "soft")
    note = f'<br><span class="soft">{escape(check.note)}</span>' if check.note else ""
    return (
        f"<tr><td>{escape(check.name.replace('_', ' '))}</td><td>{escape(check.measure)}</td>"
        + "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
        + f'<td class="{kind}">{escape(check.outcome)}{note}</td></tr>'
    )


def number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def probability(p: float) -> str:
    if math.isnan(p):
        return ""
    if p < 1e-12:
        return "< 1e-12"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"
