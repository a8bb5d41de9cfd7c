"""What one look at the traffic came to, in one line. No Prefect here: `nightmill watch` does without."""

from __future__ import annotations

from spark_jobs.manifests import Frozen
from tasks.watch_steps import Look
from training.watch.report import Status


class WatchLine(Frozen):
    """What one look came to. alarms: checks that alarm now; events: what was told, once an episode."""

    status: Status
    pipeline: str
    start: str
    end: str
    silent: bool = False
    model: str = ""
    requests: int = 0
    alarms: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    page: str = ""


def line_of(pipeline: str, found: Look, events: tuple[str, ...] = ()) -> WatchLine:
    told = {"pipeline": pipeline, "start": found.start.isoformat(), "end": found.end.isoformat(), "events": events}
    silent = found.silent == "alarm"
    if found.facts is None or found.report is None:
        return WatchLine.model_validate(told | {"status": found.status, "silent": silent})
    return WatchLine.model_validate(
        told
        | {
            "status": found.status,
            "silent": silent,
            "model": found.facts.model,
            "requests": found.facts.num_requests,
            "alarms": found.facts.alarms,
            "page": f"{found.report.uri}/data/page.html",
        }
    )
