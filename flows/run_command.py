"""`nightmill run` and `nightmill plan`."""

from __future__ import annotations

import argparse

from flows.console import print_night
from flows.local_run import Story, print_plan, run_here
from flows.specs import load_spec
from tasks.workspace import parse_night

NIGHTLY = Story("flows.nightly:nightly", "flows.report:NightReport", print_night)


def run(arguments: argparse.Namespace) -> int:
    """Run a night in this process tree and print its step table; with --json, one line on stdout at the end."""
    spec = load_spec(arguments.preset, arguments.settings)
    return run_here(spec, parse_night(arguments.night), NIGHTLY, arguments.json)


def plan(arguments: argparse.Namespace) -> int:
    """Print what `run` would do. Reads manifests only; writes nothing, starts nothing."""
    spec = load_spec(arguments.preset, arguments.settings)
    return print_plan(spec, parse_night(arguments.night), NIGHTLY, arguments.json)
