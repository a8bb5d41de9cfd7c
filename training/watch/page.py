"""The page of one look: one self-contained HTML file. No scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

import math
from html import escape

from training.watch.compare import Check
from training.watch.picture import picture
from training.watch.report import WatchFacts

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #16202c; --soft: #5b6877; --line: #dfe4ea; --good: #1b7f4b; --bad: #b3362f; }
@media (prefers-color-scheme: dark) { :root { --page: #10151b; --card: #18202a; --ink: #e6ebf1; --soft: #97a5b5; --line: #2b3644; --good: #5ecb91; --bad: #ef8078; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1000px; margin: 0 auto; padding: 32px 20px 60px; }
h1 { font-size: 26px; margin: 0; letter-spacing: -.4px; } h2 { font-size: 17px; margin: 0 0 12px; }
header p { margin: 4px 0 20px; color: var(--soft); overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px; margin-bottom: 16px; overflow-x: auto; }
.status { border-left: 5px solid var(--good); } .status.alarm { border-left-color: var(--bad); } .status.few { border-left-color: var(--soft); } .status p { margin: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; }
td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; } tr:last-child td { border-bottom: 0; }
.n { text-align: right; white-space: nowrap; } .good { color: var(--good); } .bad { color: var(--bad); font-weight: 650; } .soft { color: var(--soft); }
.note { color: var(--soft); font-size: 13px; margin: 10px 0 0; } svg { width: 100%; height: auto; display: block; border-radius: 6px; }
"""
COLUMNS = ("check", "measure", "value", "interval", "threshold", "by chance", "p", "p, all checks", "n", "outcome")


def page_of(facts: WatchFacts) -> str:
    """The whole page as text."""
    title = f"{facts.pipeline}: traffic until {facts.end}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<header><h1>{escape(facts.pipeline)}: live traffic</h1><p>{escape(facts.start)} to {escape(facts.end)}, answered by "
        f"{escape(facts.model)}, against {escape(facts.against)}</p></header>"
        f"{_status(facts)}<section><h2>Checks</h2>{_table(facts.checks)}"
        '<p class="note">An alarm wants both: a value above its threshold, and a p-value over all checks at or below alpha.'
        " By chance: the value that windows without a difference have on average, already taken off where it says so in the"
        f" documentation.</p></section><section><h2>Distributions</h2>{picture(facts.distributions)}</section>"
        "</main></body></html>\n"
    )


def words_of(facts: WatchFacts) -> str:
    """One sentence for people: the page, the terminal, the event."""
    about = f"{facts.num_requests:,} requests, {facts.num_errors:,} failed"
    if facts.status == "alarm":
        return f"differs in {', '.join(facts.alarms)} ({about})"
    if facts.status == "too few":
        return f"too few requests to tell ({about})"
    return f"as expected ({about})"


def _status(facts: WatchFacts) -> str:
    kind = {"alarm": " alarm", "too few": " few"}.get(facts.status, "")
    notes = []
    if facts.other_models:
        others = ", ".join(f"{address} ({n:,})" for address, n in facts.other_models.items())
        notes.append(f"Not counted, as other models answered: {others}.")
    if facts.num_unreadable:
        notes.append(f"{facts.num_unreadable} lines of traffic could not be read.")
    told = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    files = "1 replica" if facts.replicas == 1 else f"{facts.replicas} replicas"
    return f'<section class="status{kind}"><p>Traffic {escape(words_of(facts))}, from {files}.</p>{told}</section>'


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
