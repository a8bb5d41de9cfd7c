"""The page of a night: one self-contained HTML file. No scripts, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from pathlib import Path

from tasks.night_charts import columns, loss_curve, sankey
from tasks.night_facts import Cost, Example, NightFacts, Score, night_facts
from tasks.workspace import Workspace, write_atomic
from training.page_style import page

TORCH_STEPS = (
    "train",
    "export",
    "calibrate",
    "thin",
    "recover",
    "compress",
    "evaluate",
    "measure",
    "choose",
    "gate",
    "report",
)


def write_page(workspace: Workspace, night: str) -> Path:
    """Write `<workspace>/nights/<night>.html`, beside the night's record; returns its path.

    It is a view, not an output: it shows what the run cost, which differs between two honest runs, so no key or digest
    covers it and it may be written again at any time.
    """
    file = workspace.root / "nights" / f"{night}.html"
    write_atomic(file, page_of(night_facts(workspace, night)))
    return file


def page_of(facts: NightFacts) -> str:
    """The whole page as text."""
    title = f"{facts.pipeline}, night {facts.night}"
    parts = [
        _tiles(facts), _decision(facts), _flow(facts),
        _two(_lengths(facts), _sources(facts)), _two(_models(facts), _curve(facts)), _candidates(facts),
        _two(_duplicates(facts), _languages(facts) + _checks(facts)), _costs(facts), _examples(facts),
    ]  # fmt: skip
    header = f"<h1>{escape(facts.pipeline)}</h1><p>night of {escape(facts.night)}</p>"
    return page(title, header, parts)


def number(value: float) -> str:
    """1,234 as it is; above a million with two decimals and M or B."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def words(reason: str) -> str:
    return reason.replace("_", " ")


def _tiles(facts: NightFacts) -> str:
    tiles: list[tuple[str, str]] = []
    if facts.stages:
        read, kept = facts.stages[0].num_in, facts.stages[-1].num_out
        tiles += [(number(read), "documents read"), (number(kept), f"kept, {kept / max(read, 1):.0%}")]
    if facts.num_tokens:
        tiles.append((number(facts.num_tokens), f"tokens in {number(facts.num_sequences)} sequences"))
    if facts.num_nights > 1:
        tiles.append((number(facts.corpus_tokens), f"tokens in the corpus of {facts.num_nights} nights"))
    if facts.scores:
        tiles.append((f"{facts.scores[0].bits_per_byte:.3f}", f"bits per byte, {facts.scores[0].model}"))
    if facts.costs:
        tiles += [(duration(facts.seconds), "working time"), (f"{facts.cpu_hours:.3f}", "CPU-hours")]
    if facts.price is not None:
        tiles.append((f"{facts.price + (_gpu_price(facts) or 0):.4f}", "cost, by the prices set here"))
    inside = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>' for value, what in tiles
    )
    return f'<div class="tiles">{inside}</div>'


def _gpu_price(facts: NightFacts) -> float | None:
    if facts.price_gpu_hour is None:
        return None
    hours = sum(c.usage.seconds for c in facts.costs if c.step.startswith(TORCH_STEPS)) / 3600
    return hours * facts.price_gpu_hour


def _decision(facts: NightFacts) -> str:
    failed = [check.step for check in facts.checks if not check.success]
    if failed:
        text = f"<b>Stopped</b> by {', '.join(failed)}: the data did not pass its checks, nothing behind them ran."
        return f'<section class="decision failed"><p>{text}</p></section>'
    if not facts.decision:
        return '<section class="decision"><p><b>Not finished</b>: this night has no decision yet.</p></section>'
    gone = f" {facts.num_forgotten} documents are forgotten in its corpus." if facts.num_forgotten else ""
    kind = "promoted" if facts.decision.startswith("promote") else ""
    more = f' <a href="{escape(facts.evaluation)}">Report of the evaluation</a>' if facts.evaluation else ""
    return (
        f'<section class="decision {kind}"><p><b>{escape(facts.decision.capitalize())}</b>: {escape(facts.reason)}.{gone}{more}</p>'
        + "".join(f'<p class="note">{escape(line)}</p>' for line in facts.afterwards)
        + "</section>"
    )


def _flow(facts: NightFacts) -> str:
    if not facts.stages:
        return ""
    rows = "".join(
        f"<tr><td>{escape(stage.step)}</td><td>{escape(words(reason))}</td><td class=n>{count:,}</td>"
        f"<td class=n>{count / max(stage.num_in, 1):.1%}</td></tr>"
        for stage in facts.stages
        for reason, count in stage.rejects.items()
    )
    table = (
        "<details><summary>The same in numbers</summary><table><tr><th>step<th>reason<th class=n>documents<th class=n>"
        f"of those that came in</tr>{rows}</table></details>"
    )
    ends = {"training": facts.stages[-1].num_out - facts.num_heldout, "held out": facts.num_heldout}
    picture = sankey(facts.stages, ends if facts.num_tokens else {})
    return f"<section><h2>What came in, what left, and why</h2>{picture}{table if rows else ''}</section>"


def _two(left: str, right: str) -> str:
    if left and right:
        return f'<div class="two"><div>{left}</div><div>{right}</div></div>'
    return left or right


def _lengths(facts: NightFacts) -> str:
    if not any(facts.lengths):
        return ""
    first = next(i for i, n in enumerate(facts.lengths) if n)
    bars = [(_bytes(2 ** (first + i)), n) for i, n in enumerate(facts.lengths[first:])]
    note = f"Bytes of UTF-8, from the size named; {facts.num_sampled:,} of {facts.stages[-1].num_out:,} kept documents."
    return f'<section><h2>Lengths</h2>{columns(bars)}<p class="note">{note}</p></section>'


def _bytes(size: int) -> str:
    return f"{size}" if size < 1024 else f"{size // 1024} K" if size < 2**20 else f"{size // 2**20} M"


def _sources(facts: NightFacts) -> str:
    if not facts.sources:
        return ""
    most = max(sum(pair) for pair in facts.sources.values())
    rows = "".join(
        f'<tr><td>{escape(name)}<td class="w">{_track((kept / most, ""), (refused / most, "no"))}'
        f"<td class=n>{kept:,} kept<td class=n>{refused:,} refused</tr>"
        for name, (kept, refused) in list(facts.sources.items())[:12]
    )
    more = f'<p class="note">and {len(facts.sources) - 12} smaller ones</p>' if len(facts.sources) > 12 else ""
    return f"<section><h2>Sources</h2><table>{rows}</table>{more}</section>"


def _track(*shares: tuple[float, str]) -> str:
    return (
        '<div class="track">'
        + "".join(f'<i class="{c}" style="width:{100 * s:.2f}%"></i>' for s, c in shares)
        + "</div>"
    )


def _duplicates(facts: NightFacts) -> str:
    if not facts.stages:
        return ""
    if not facts.clusters:
        return '<section><h2>Duplicates</h2><p class="note">No document was a copy of another.</p></section>'
    copies = sum(size * n for size, n in facts.clusters.items())
    groups: dict[str, int] = {}
    for size, n in facts.clusters.items():
        name = str(size) if size < 4 else "4 to 9" if size < 10 else "10 to 99" if size < 100 else "100 or more"
        groups[name] = groups.get(name, 0) + n
    largest = "".join(f"<tr><td class=mono>{doc_id}<td class=n>{n:,}</tr>" for doc_id, n in facts.largest[:5])
    return (
        f"<section><h2>Duplicates</h2>{columns(list(groups.items()), 130)}"
        f'<p class="note">{copies:,} copies removed of {sum(facts.clusters.values()):,} documents; by copies removed for one '
        f"document.</p><table><tr><th>most copied<th class=n>copies</tr>{largest}</table></section>"
    )


def _languages(facts: NightFacts) -> str:
    if not facts.languages:
        return ""
    rows = "".join(
        f'<tr><td>{escape(name)}<td class="w">{_track((n / facts.num_sampled, ""))}<td class=n>{n / facts.num_sampled:.1%}</tr>'
        for name, n in list(facts.languages.items())[:10]
    )
    return f"<section><h2>Languages</h2><table>{rows}</table></section>"


def _models(facts: NightFacts) -> str:
    if not facts.scores:
        return ""
    lines = [*facts.scores, Score(model="gzip -9", bits_per_byte=facts.gzip_bits_per_byte)]
    most = max(line.bits_per_byte for line in lines)
    rows = "".join(
        f'<tr><td>{escape(line.model)}<td class="w">{_track((line.bits_per_byte / most, ""))}<td class=n>{line.bits_per_byte:.4f}'
        f"<td class=n>{_size(line.weight_bytes)}</tr>"
        for line in lines
    )
    return (
        "<section><h2>Bits per byte on held-out text</h2><table><tr><th>model<th><th class=n>bits<th class=n>weights</tr>"
        f'{rows}</table><p class="note">Less is better; a byte without a model is 8.</p></section>'
    )


def _candidates(facts: NightFacts) -> str:
    """The picture is our own output, drawn from escaped names."""
    if not facts.pareto:
        return ""
    return f'<section><h2>Candidates by size and quality</h2><div class="paper">{facts.pareto}</div><p class="note">{escape(facts.choice)}</p></section>'


def _size(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size else ""


def _curve(facts: NightFacts) -> str:
    if len(facts.curve) < 2:
        return ""
    note = f"{facts.num_parameters:,} parameters, {len(facts.curve)} steps; nats a token."
    return f'<section><h2>Training loss</h2>{loss_curve(facts.curve)}<p class="note">{note}</p></section>'


def _costs(facts: NightFacts) -> str:
    if not facts.costs:
        return ""
    longest = max(cost.usage.seconds for cost in facts.costs) or 1.0
    rows = "".join(_cost_row(cost, longest) for cost in facts.costs)
    gpu = _gpu_price(facts)
    total = f"{duration(facts.seconds)} of work, {facts.cpu_hours:.4f} CPU-hours"
    if facts.price is not None:
        total += f", {facts.price:.4f} at {facts.price_cpu_hour:g} a core-hour"
    if gpu is not None:
        total += f", {gpu:.4f} for the model steps at {facts.price_gpu_hour:g} a GPU-hour"
    return (
        "<section><h2>Time and cost</h2><table><tr><th>step<th><th class=n>seconds<th class=n>CPU-seconds<th class=n>peak MiB"
        f'<th class=n>text MB<th class=n>MB/s a core</tr>{rows}</table><p class="note">{total}. Steps kept from an earlier '
        "night or run are as they were then.</p></section>"
    )


def _cost_row(cost: Cost, longest: float) -> str:
    usage = cost.usage
    read = "" if cost.megabytes is None else f"{cost.megabytes:,.2f}"
    rate = "" if cost.rate is None else f"{cost.rate:.3f}"
    return (
        f"<tr><td>{escape(cost.step)}<td class=w>{_track((usage.seconds / longest, ''))}<td class=n>{usage.seconds:,.1f}"
        f"<td class=n>{usage.cpu_seconds:,.1f}<td class=n>{usage.peak_mb:,.0f}<td class=n>{read}<td class=n>{rate}</tr>"
    )


def _checks(facts: NightFacts) -> str:
    if not facts.checks:
        return ""
    rows = "".join(
        f'<tr><td><a href="{escape(check.page)}">{escape(check.step)}</a><td class=n>{check.num_expectations} expectations'
        f"<td>{_badge(check.success)}<td>{escape(', '.join(check.failed))}</tr>"
        for check in facts.checks
    )
    return f"<section><h2>Checks between the steps</h2><table>{rows}</table></section>"


def _badge(success: bool) -> str:
    return '<span class="badge good">passed</span>' if success else '<span class="badge bad">failed</span>'


def _examples(facts: NightFacts) -> str:
    if not facts.examples:
        return ""
    groups: dict[tuple[str, str], list[Example]] = {}
    for example in facts.examples:
        groups.setdefault((example.step, example.reason), []).append(example)
    counts = {(stage.step, reason): n for stage in facts.stages for reason, n in stage.rejects.items()}
    inside = "".join(_example_group(group, examples, counts) for group, examples in groups.items())
    note = "Beginnings of texts; e-mail addresses and longer numbers are masked."
    return f'<section><h2>Examples of what was refused</h2>{inside}<p class="note">{note}</p></section>'


def _example_group(group: tuple[str, str], examples: Iterable[Example], counts: dict[tuple[str, str], int]) -> str:
    step, reason = group
    inside = "".join(
        f'<blockquote><div class="mono">{escape(e.origin)}{_measure(e)}</div>{escape(e.text)}'
        + (f'<div class="note">{escape(e.detail)}</div>' if e.detail else "")
        + "</blockquote>"
        for e in examples
    )
    return f"<details><summary>{escape(step)}: {escape(words(reason))} ({counts.get(group, 0):,})</summary>{inside}</details>"


def _measure(example: Example) -> str:
    if example.value is None:
        return ""
    limit = "" if example.threshold is None else f", threshold {example.threshold:g}"
    return f": {example.value:.4g}{limit}"
