"""What nobody needs any more goes: outputs of old nights, copies in the registry, left-over attempts. Deployment `maintenance`."""

from __future__ import annotations

from prefect import flow

from flows.specs import NightlySpec
from spark_jobs.errors import StepBusy
from spark_jobs.manifests import Frozen
from tasks.artifacts import publish_markdown
from tasks.registry import registry_client
from tasks.registry_retention import remove_version, retired_versions
from tasks.retention import Removal, RetentionPlan, plan_retention, remove
from tasks.workspace import Workspace

SHOWN = 50  # lines of the table; its last one says how many there are


class MaintenanceReport(Frozen):
    """What `nightmill maintenance --json` prints as its last line."""

    status: str = "done"
    dry_run: bool = False
    kept: int = 0
    removed: tuple[Removal, ...] = ()
    freed_bytes: int = 0
    busy: str = ""


@flow(name="maintenance")
def maintenance(spec: NightlySpec, dry_run: bool = False) -> MaintenanceReport:
    """Remove what the pipeline's `retention` does not keep. Never a champion among the newest, what it was made from, or its evidence.

    While a step of the pipeline runs nothing is removed; the next maintenance does it.

    Args:
        spec: What to do; this flow reads `name` and `retention`.
        dry_run: Only say what would go.
    """
    report = maintain(spec, dry_run)
    publish_markdown("maintenance", as_markdown(report), "What maintenance removed")
    return report


def maintain(spec: NightlySpec, dry_run: bool) -> MaintenanceReport:
    workspace = Workspace.of(spec.name)
    try:
        plan = plan_retention(workspace, spec.retention) if dry_run else remove(workspace, spec.retention)
    except StepBusy as err:
        return MaintenanceReport(status="busy", busy=str(err))
    removed = (*plan.removed, *_versions(workspace, plan, dry_run))
    return MaintenanceReport(
        dry_run=dry_run, kept=len(plan.kept), removed=removed, freed_bytes=sum(r.size_bytes for r in removed)
    )


def _versions(workspace: Workspace, plan: RetentionPlan, dry_run: bool) -> list[Removal]:
    client = registry_client()
    versions = retired_versions(client, workspace, set(plan.kept))
    if dry_run:
        return [
            Removal(path=f"models:/{v.name}/{v.version}", what="registered version", size_bytes=0) for v in versions
        ]
    return [remove_version(client, version) for version in versions]


def as_markdown(report: MaintenanceReport) -> str:
    if report.busy:
        return report.busy
    verb = "would go" if report.dry_run else "went"
    lines = [
        f"{len(report.removed)} {verb}, {report.freed_bytes / 2**20:,.1f} MiB; {report.kept} outputs stay.",
        "",
        "| what | where | MiB |",
        "|---|---|---|",
    ]
    lines += [f"| {r.what} | `{r.path}` | {r.size_bytes / 2**20:,.2f} |" for r in report.removed[:SHOWN]]
    if len(report.removed) > SHOWN:
        lines.append(f"| and {len(report.removed) - SHOWN} more | | |")
    return "\n".join(lines)
