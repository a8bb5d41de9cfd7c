"""`nightmill maintenance`: remove what a pipeline's `retention` does not keep, here and now."""

from __future__ import annotations

import argparse

from flows.specs import load_spec


def maintenance(arguments: argparse.Namespace) -> int:
    """Print what went, or with --dry-run what would. Exit code 1 if a running step kept everything as it is."""
    spec = load_spec(arguments.preset, arguments.settings)
    from flows.console import terminal
    from flows.maintenance import maintain

    report = maintain(spec, arguments.dry_run)
    console = terminal(to_stderr=arguments.json)
    if report.busy:
        console.print(report.busy, highlight=False)
    else:
        verb = "would go" if report.dry_run else "went"
        for removal in report.removed:
            console.print(
                f"  {removal.size_bytes / 2**20:10,.2f} MiB  {removal.what:18} {removal.path}", highlight=False
            )
        console.print(
            f"{len(report.removed)} {verb}, {report.freed_bytes / 2**20:,.1f} MiB; {report.kept} outputs of {spec.name} stay",
            highlight=False,
        )
    if arguments.json:
        print(report.model_dump_json())  # noqa: T201
    return 1 if report.busy else 0
