"""The `nightmill` command. Heavy imports wait until a command needs them, so that `--help` and errors are instant.

Exit codes: 0 done, 1 the run failed, 2 the request was wrong.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any

from spark_jobs.errors import NightmillError, RequestError
from tasks.machine import set_environment
from tasks.redaction import redact

Command = Callable[[argparse.Namespace], int]


def main(argv: list[str] | None = None) -> int:
    """Entry point. Prints one clear message for anything foreseen; a traceback means a defect of Nightmill."""
    arguments = _parser().parse_args(argv)
    set_environment()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return int(arguments.command(arguments))
    except RequestError as err:
        print(f"nightmill: {redact(str(err))}", file=sys.stderr)
        return 2
    except NightmillError as err:
        print(f"nightmill: {redact(str(err))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("nightmill: stopped; run the same command again to go on", file=sys.stderr)
        return 1


def _terminated(_number: int, _frame: Any) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nightmill", description="Raw text in, a registered champion out, every night."
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    run = commands.add_parser("run", help="run a night here, now")
    _add_night_arguments(run)
    run.add_argument("--json", action="store_true", help="end with one JSON line on stdout; progress goes to stderr")
    run.add_argument(
        "--dry-run", action="store_true", help="only print the plan, and the memory and FLOPs that training would need"
    )
    run.set_defaults(command=_run)

    plan = commands.add_parser("plan", help="say which steps would run, and why; touches nothing")
    _add_night_arguments(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON line")
    plan.set_defaults(command=_lazy("flows.run_command", "plan"))

    finetune = commands.add_parser("finetune", help="train a model for a task on labelled examples, and score it")
    _add_night_arguments(finetune)
    finetune.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    finetune.add_argument("--plan", action="store_true", help="only say which steps would run, and why")
    finetune.set_defaults(command=_lazy("flows.finetune_command", "finetune"))

    tune = commands.add_parser("tune", help="search the settings of a fine-tuning; trials run on Dask")
    _add_night_arguments(tune)
    tune.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    tune.add_argument("--plan", action="store_true", help="only say what would run, and why")
    tune.add_argument(
        "--trial", type=int, metavar="N", help="do not search: train trial N of the search alone, score it"
    )
    tune.set_defaults(command=_lazy("flows.tune_command", "tune"))

    distill = commands.add_parser("distill", help="train a smaller model for a task by a teacher, and score both")
    _add_night_arguments(distill)
    distill.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    distill.add_argument("--plan", action="store_true", help="only say which steps would run, and why")
    distill.set_defaults(command=_lazy("flows.distill_command", "distill"))

    evaluate = commands.add_parser("evaluate", help="ask a model benchmarks from local folders, or the harness's tasks")
    _add_night_arguments(evaluate)
    evaluate.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    evaluate.add_argument("--plan", action="store_true", help="only say which steps would run, and why")
    evaluate.set_defaults(command=_lazy("flows.evaluate_command", "evaluate"))

    compress = commands.add_parser(
        "compress", help="make smaller candidates of a night's model, and choose within a budget"
    )
    _add_night_arguments(compress, default_night="the newest night with a model")
    compress.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    compress.add_argument("--plan", action="store_true", help="only say which steps would run, and why")
    compress.set_defaults(command=_lazy("flows.compress_command", "compress"))

    for name, text in (
        ("trace", "where a document, sequence or model came from, and what became of it"),
        ("forget", "take documents out of every snapshot from now on"),
    ):
        command = commands.add_parser(name, help=text)
        _add_lineage_arguments(command, name)
        command.set_defaults(command=_lazy(f"flows.{name}_command", name))

    promote = commands.add_parser(
        "promote", help="make a registered model champion by hand, or answer what awaits approval"
    )
    _add_hand_arguments(promote)
    target = promote.add_mutually_exclusive_group()
    target.add_argument(
        "--night", default="", metavar="DATE", help="the candidate of that night; default: what awaits approval"
    )
    target.add_argument("--version", default="", metavar="N", help="that version of the registry")
    how = promote.add_mutually_exclusive_group()
    how.add_argument("--force", action="store_true", help="also against the gate, an earlier rollback or rejection")
    how.add_argument("--reject", action="store_true", help="refuse what awaits approval; the champion stays")
    how.add_argument(
        "--repair", action="store_true", help="only make champion.json and MLflow's aliases say what the ledger says"
    )
    promote.set_defaults(command=_lazy("flows.promote_command", "promote_model"))

    rollback = commands.add_parser("rollback", help="restore the champion before the present one")
    _add_hand_arguments(rollback)
    rollback.add_argument("--to", default="", metavar="VERSION", help="an earlier champion's; default: the one before")
    rollback.set_defaults(command=_lazy("flows.promote_command", "rollback"))

    report = commands.add_parser("report", help="pages and tables about a night")
    reports = report.add_subparsers(metavar="what", required=True)
    page = reports.add_parser("night", help="write the page of a night anew and print its path")
    page.add_argument("preset", nargs="?", default="demo", help="preset or YAML file that names the pipeline")
    page.add_argument("--night", default="", metavar="DATE", help="default: the newest night there is")
    page.set_defaults(command=_lazy("flows.report_command", "report_night"))
    evaluation = reports.add_parser("evaluation", help="print the path of the report of a night's evaluation")
    evaluation.add_argument("preset", nargs="?", default="demo", help="preset or YAML file that names the pipeline")
    evaluation.add_argument("--night", default="", metavar="DATE", help="default: the newest night there is")
    evaluation.set_defaults(command=_lazy("flows.report_command", "report_of_evaluation"))
    candidates = reports.add_parser("thresholds", help="what each candidate threshold of each rule would remove")
    _add_night_arguments(candidates)
    candidates.set_defaults(command=_lazy("flows.thresholds_command", "report_thresholds"))

    watch = commands.add_parser(
        "watch", help="compare live traffic with what the champion was trained on; changes nothing"
    )
    watch.add_argument("preset", help="name of a preset, or a YAML file")
    watch.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=c", help="change one setting"
    )
    watch.add_argument("--at", default="", metavar="TIME", help="end of the window, ISO 8601, UTC; default: now")
    watch.add_argument("--json", action="store_true", help="print one JSON line")
    watch.set_defaults(command=_lazy("flows.watch_command", "watch"))

    serve = commands.add_parser("serve", help="answer requests with a pipeline's champion, or any model folder")
    _add_serve_arguments(serve)
    serve.set_defaults(command=_lazy("flows.serve_command", "serve_command"))

    backfill = commands.add_parser("backfill", help="run nights that never happened, oldest first")
    backfill.add_argument("preset", help="name of a preset, or a YAML file")
    backfill.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=c", help="change one setting"
    )
    backfill.add_argument("--first", required=True, metavar="DATE", help="oldest night, YYYY-MM-DD")
    backfill.add_argument("--last", default="", metavar="DATE", help="newest night; default: yesterday in UTC")
    backfill.add_argument("--json", action="store_true", help="print one JSON line a night on stdout")
    backfill.set_defaults(command=_lazy("flows.backfill_command", "backfill"))

    maintenance = commands.add_parser("maintenance", help="remove outputs of old nights that nothing needs any more")
    maintenance.add_argument("preset", help="name of a preset, or a YAML file")
    maintenance.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=c", help="change one setting"
    )
    maintenance.add_argument("--dry-run", action="store_true", help="only say what would go")
    maintenance.add_argument("--json", action="store_true", help="end with one JSON line on stdout")
    maintenance.set_defaults(command=_lazy("flows.maintenance_command", "maintenance"))

    doctor = commands.add_parser("doctor", help="check Python, Java, memory, disk, ports, versions")
    doctor.add_argument("--json", action="store_true", help="print one JSON line")
    doctor.set_defaults(command=_lazy("flows.doctor", "doctor"))

    setup = commands.add_parser("setup", help="prepare this installation once: Java, class archive, database templates")
    setup.set_defaults(command=_lazy("flows.setup_command", "setup"))

    up = commands.add_parser("up", help="start Prefect, MLflow and workers; apply deployments")
    up.add_argument("--port", type=int, default=4200, help="of the Prefect server")
    up.add_argument("--mlflow-port", type=int, default=5000, help="of the MLflow server")
    up.add_argument("--no-auth", action="store_true", help="no password on the Prefect server")
    up.set_defaults(command=_lazy("flows.server_commands", "up"))
    for name, text in (
        ("status", "what is running, and where"),
        ("down", "stop what `up` started"),
    ):
        commands.add_parser(name, help=text).set_defaults(command=_lazy("flows.server_commands", name))
    deploy = commands.add_parser("deploy", help="apply prefect.yaml to the server")
    deploy.add_argument(
        "--pools", default="", metavar="FOLDER", help="base job templates: pools start Jobs on Kubernetes; infra/pools"
    )
    deploy.add_argument("--try-alarm", action="store_true", help="then send one alarm that says it is a trial")
    deploy.set_defaults(command=_lazy("flows.server_commands", "deploy"))
    return parser


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", default="", metavar="PRESET", help="or `key`, to make a key")
    parser.add_argument("key_name", nargs="?", default="", metavar="NAME", help="of a new key")
    parser.add_argument("--model", default="", metavar="FOLDER", help="a Hugging Face folder, instead of a champion")
    parser.add_argument("--name", default="", help="of the model in requests; default: the pipeline's, or the folder's")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; others than loopback want keys")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--replicas", type=int, default=1, help="processes behind the port")
    parser.add_argument("--keys", default="", metavar="FILE", help="who may ask; see `nightmill serve key`")
    parser.add_argument("--no-keys", action="store_true", help="let other machines ask without a key")
    parser.add_argument("--log", metavar="FILE", help="lines of requests; -: standard output; '': none")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a=b", help="change a limit, see docs/serving.md"
    )
    parser.add_argument("--rate", type=float, default=600.0, help="of a new key: requests a minute")
    parser.add_argument("--json", action="store_true", help="of a new key: print one JSON line")


def _add_night_arguments(parser: argparse.ArgumentParser, default_night: str = "today in UTC") -> None:
    parser.add_argument("preset", help="name of a preset, or a YAML file")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="a.b=c", help="change one setting"
    )
    parser.add_argument(
        "--night", default="", metavar="DATE", help=f"logical night, YYYY-MM-DD; default: {default_night}"
    )


def _add_hand_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", help="preset or YAML file that names the pipeline")
    parser.add_argument("--why", default="", metavar="TEXT", help="kept in the ledger beside who and when")
    parser.add_argument("--json", action="store_true", help="print one JSON line")


def _add_lineage_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    if name == "trace":
        parser.add_argument("what", choices=["doc", "sequence", "model"])
        parser.add_argument(
            "id",
            help="doc: an id, its first digits, or a glob over file@place; sequence: NIGHT/NUMBER; model: champion, a "
            "version, a night or an address",
        )
    parser.add_argument("preset", nargs="?", default="demo", help="preset or YAML file that names the pipeline")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    if name == "forget":
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--doc", metavar="ID", help="one document: its id, first digits, or a glob over file@place")
        which.add_argument("--source", metavar="NAME", help="every document of a source, also those to come")
        which.add_argument(
            "--origin", metavar="GLOB", help="every document of the files that match, also those to come"
        )
        parser.add_argument("--why", default="", help="kept in forgotten.jsonl beside who and when")
        parser.add_argument("--dry-run", action="store_true", help="only say what it would take out")


def _run(arguments: argparse.Namespace) -> int:
    where = ("flows.dry_run", "dry_run") if arguments.dry_run else ("flows.run_command", "run")
    return _lazy(*where)(arguments)


def _lazy(module: str, function: str) -> Command:
    def command(arguments: argparse.Namespace) -> int:
        import importlib

        return int(getattr(importlib.import_module(module), function)(arguments))

    return command


if __name__ == "__main__":
    sys.exit(main())
