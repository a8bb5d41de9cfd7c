"""`nightmill backfill`: nights that never happened, here and now, oldest first."""

from __future__ import annotations

import argparse

from flows.local_run import run_nights
from flows.night_range import nights_between
from flows.run_command import NIGHTLY
from flows.specs import load_spec


def backfill(arguments: argparse.Namespace) -> int:
    """Run each night like `nightmill run`; with --json, one line a night. Stops at the first that fails."""
    spec = load_spec(arguments.preset, arguments.settings)
    nights = list(nights_between(arguments.first, arguments.last))
    return run_nights(spec, nights, NIGHTLY, arguments.json)
