"""The commands of docs/operating.md, run as an operator runs them: they stand there, so they work.

    python -m benchmarks.operating [--home FOLDER] [--older CHECKOUT PYTHON]

A home of its own on ports of its own is installed, runs nights, is upgraded, backed up, lost, restored, told of alarms and scaled out.
The commands are the indented blocks of the guide, each below a comment that names it (`<!-- runs: NAME -->`) or says why it is not run
(`<!-- not run: REASON -->`). Changed are only names of places that every site has its own of: see `Operator.told`.

--older: begin as an older release, its checkout and the Python that has its packages; the second `make install`, that of
the upgrade, goes over to this one. Packages themselves are not installed: every run of CI does.
Last line: JSON {"blocks": how many were run, "not_run": how many were not, "older": what was upgraded from, "seconds"}.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pydoc_data.topics import topics

from benchmarks.cluster import wait_for
from benchmarks.ports import free_port
from benchmarks.postgres import Postgres, postgres, programs

ROOT = Path(__file__).parents[1]
GUIDES = (ROOT / "docs" / "operating.md", ROOT / "docs" / "alerts.md")
PRESET = ROOT / "tests" / "fixtures" / "tiny.yaml"
NIGHTS = ("2026-11-20", "2026-11-21", "2026-11-22")
REMEDIES = (  # what docs/alerts.md has one do or look at
    "nightmill status", "nightmill report night PRESET", "nightmill report evaluation PRESET", "nightmill run PRESET --dry-run", "nightmill up",
    "nightmill run PRESET", "nightmill backfill PRESET --first DATE",
)  # fmt: skip
MARK = re.compile(r"^<!-- (runs|not run): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """Commands of a guide, and what its comment says of them; `kind` is empty where there is no comment."""

    kind: str
    words: str
    script: str


def blocks(page: Path) -> list[Block]:
    """The indented blocks of a page. One may have blank lines inside; any other line ends it."""
    found: list[Block] = []
    mark, lines = ("", ""), list[str]()
    for line in [*page.read_text().splitlines(), "the end"]:
        if line.startswith("    ") or (not line and lines):
            lines.append(line[4:])
            continue
        if lines:
            found.append(Block(*mark, "\n".join(lines).rstrip()))
            mark, lines = ("", ""), []
        told = MARK.match(line)
        if told:
            mark = (told[1], told[2])
        elif line:
            mark = ("", "")
    return found


def named_blocks() -> dict[str, str]:
    return {block.words: block.script for page in GUIDES for block in blocks(page) if block.kind == "runs"}


@dataclass
class Operator:
    """Somebody with a shell, a home and a guide."""

    folder: Path
    environment: dict[str, str]
    told: dict[str, str] = field(default_factory=dict)  # what the guide says: what it is here
    done: list[str] = field(default_factory=list)

    def does(self, name: str, **environment: str) -> str:
        """Run a block of the guide to its end. Returns what it printed.

        Raises: SystemExit if a command fails.
        """
        self.done.append(name)
        return self.shell(named_blocks()[name], f"block `{name}`", **environment)

    def shell(self, script: str, name: str = "", **environment: str) -> str:
        script = self.here(script)
        print(f"\n$ {name}\n" + "\n".join(f"    {line}" for line in script.splitlines()), flush=True)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            env=self.environment | environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        print(done.stdout, flush=True)
        if done.returncode != 0:
            raise SystemExit(f"{name or script} ended with {done.returncode}")
        return done.stdout

    @contextmanager
    def keeps(self, name: str, **environment: str) -> Iterator[Path]:
        """A block of the guide that does not end by itself, for a while. Yields its log."""
        self.done.append(name)
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", self.here(named_blocks()[name])],
                env=self.environment | environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            yield log
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)

    def here(self, script: str) -> str:
        for word, place in self.told.items():
            script = re.sub(rf"(?<![\w-]){re.escape(word)}\b", place.replace("\\", r"\\"), script)
        return script


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, help="folder to work in, kept; default: a temporary one")
    parser.add_argument("--older", nargs=2, metavar=("CHECKOUT", "PYTHON"), help="an older release to begin with")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nightmill-operating-") as temporary:
        folder = (arguments.home or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        operator = an_operator(folder, arguments.older)
        try:
            work(operator)
        finally:
            operator.shell("nightmill down", "the end")
    facts = {
        "blocks": len(operator.done),
        "not_run": sum(block.kind == "not run" for page in GUIDES for block in blocks(page)),
        "older": arguments.older[0] if arguments.older else "",
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(facts))


def an_operator(folder: Path, older: list[str] | None) -> Operator:
    home, ports = folder / "home", [free_port(), free_port()]
    texts = folder / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    texts.mkdir()
    preset = folder / "tiny.yaml"
    preset.write_text(PRESET.read_text().replace("SET-BY-THE-TEST", str(texts)))
    environment = os.environ | {
        "PATH": f"{commands(folder, ports, older)}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NIGHTMILL_HOME": str(home), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    return Operator(folder, environment, {"/backup": str(folder / "backup"), "PRESET": str(preset), "DATE": NIGHTS[0]})


def commands(folder: Path, ports: list[int], older: list[str] | None) -> Path:
    """A folder with `nightmill` (of the release that is installed, on our ports) and `make` (whose `install` installs this one)."""
    bin_folder = folder / "bin"
    shutil.rmtree(bin_folder, ignore_errors=True)
    bin_folder.mkdir()
    (bin_folder / "new").write_text(_release(str(ROOT), sys.executable))
    (bin_folder / "release").write_text(_release(*(older or (str(ROOT), sys.executable))))
    scripts = {
        "nightmill": f'[ "$1" != up ] || set -- "$@" --port {ports[0]} --mlflow-port {ports[1]}\n'
        f'source {bin_folder}/release\nexec "$run" -m flows "$@"\n',
        "make": f'[ "$*" = install ]\n[ ! -e {folder}/installed ] || cp {bin_folder}/new {bin_folder}/release\n'
        f"touch {folder}/installed\nexec {bin_folder}/nightmill setup\n",
    }
    (folder / "installed").unlink(missing_ok=True)
    for name, script in scripts.items():
        (bin_folder / name).write_text("#!/usr/bin/env bash\nset -eu\n" + script)
        (bin_folder / name).chmod(0o755)
    return bin_folder


def _release(checkout: str, python: str) -> str:
    return f"cd {checkout}\nexport PYTHONPATH={checkout}\nrun={python}\n"


def work(operator: Operator) -> None:
    """The life of a home, in the order of the guide."""
    operator.does("install")
    new_texts(operator, 0)
    operator.shell(f"nightmill up && nightmill run PRESET --night {NIGHTS[0]}", "a night")
    operator.does("upgrade")
    operator.told["DATE"] = NIGHTS[1]
    new_texts(operator, 1)
    operator.shell(f"nightmill run PRESET --night {NIGHTS[1]}", "the night after")
    lose_and_restore(operator)
    alarms(operator)
    scale_out(operator)
    on_kubernetes(operator)
    if programs() is not None:
        on_postgres(operator)


def new_texts(operator: Operator, night: int) -> None:
    """What came since the night before."""
    texts = [json.dumps({"text": text}) for _, text in sorted(topics.items()) if len(text.split()) >= 60]
    path = operator.folder / "texts" / f"night-{night}.jsonl"
    path.write_text("\n".join(texts[night::3]) + "\n")


def lose_and_restore(operator: Operator) -> None:
    """Everything is cached after a restore, and the champion is who it was."""
    home = Path(operator.environment["NIGHTMILL_HOME"])
    before = {path.name: path.read_text() for path in home.glob("workspaces/*/champion.json")}
    operator.does("back-up-sqlite")
    operator.does("back-up-files")
    operator.shell("nightmill down", "the disk is lost")
    shutil.rmtree(home)
    home.mkdir()
    operator.does("restore-files")
    operator.does("restore-sqlite")
    refuse_work(operator.does("restore-start"))
    if {path.name: path.read_text() for path in home.glob("workspaces/*/champion.json")} != before:
        raise SystemExit("after the restore another model is champion")


def refuse_work(said: str) -> None:
    """Raises: SystemExit unless a plan that was printed has nothing to run, and pointer and aliases were as the ledger says."""
    if not re.search(r": 0 of \d+ steps would run", said) or "ledger, aliases and champion.json agree" not in said:
        raise SystemExit("after the restore something is not as it was")


def alarms(operator: Operator) -> None:
    """Somebody listens where the guide sends alarms to."""
    heard: list[str] = []
    with listener(heard) as port:
        operator.told["127.0.0.1:9000"] = f"127.0.0.1:{port}"
        operator.does("try-alarm")
        until = time.monotonic() + 60
        while not any("a trial" in text for text in heard):
            if time.monotonic() > until:
                raise SystemExit(f"the trial alarm did not arrive; what did: {heard}")
            time.sleep(0.5)
    for remedy in REMEDIES:
        operator.shell(
            remedy.replace("run PRESET", "run PRESET --night DATE").replace("--first DATE", "--first DATE --last DATE"),
            "a remedy",
        )


@contextmanager
def listener(heard: list[str]) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_words: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def scale_out(operator: Operator) -> None:
    """The next night with a Spark cluster and a second training machine, on loopback."""
    spark, meeting = free_port(), free_port()
    operator.told |= {
        "spark.internal": "127.0.0.1", "7077": str(spark), "first.internal": "127.0.0.1", "29400": str(meeting),
        "8g": "1g", "/var/tmp/nightmill-spark": str(operator.folder / "spark-work"),
    }  # fmt: skip
    new_texts(operator, 2)
    machine = {"NIGHTMILL_THREADS": "1", "NIGHTMILL_SPARK_DRIVER_HOST": "127.0.0.1", "NIGHTMILL_SPARK_PARTITIONS": "4"}
    night = f"nightmill run PRESET --night {NIGHTS[2]} --set train.ranks=2"
    first = "export NIGHTMILL_NODES=2 NIGHTMILL_RENDEZVOUS=first.internal:29400"
    with ExitStack() as stack:
        stack.enter_context(operator.keeps("spark-master", **machine))
        wait_for(spark)
        stack.enter_context(operator.keeps("spark-worker", **machine))
        node = stack.enter_context(operator.keeps("training-node", **machine))
        variables = named_blocks()["spark-variables"]
        operator.done.append("spark-variables")
        operator.shell(f"{variables}\n{first}\n{night}", "the night after that, on more machines", **machine)
        if "takes part in train" not in node.read_text():
            raise SystemExit("the second machine did not train")


def on_kubernetes(operator: Operator) -> None:
    """As far as it goes without a cluster: the secrets are made of files that are there, by a real kubectl."""
    if shutil.which("kubectl") is None:
        print("no kubectl here: its commands are not run")
        return
    dry = operator.folder / "bin" / "kubectl"
    dry.write_text(f'#!/usr/bin/env bash\nexec {shutil.which("kubectl")} "$@" --dry-run=client --output name\n')
    dry.chmod(0o755)
    told = operator.told
    operator.told = {
        "infra/compose/secrets.sh secrets": f"infra/compose/secrets.sh {operator.folder}/secrets",
        "secrets/": f"{operator.folder}/secrets/",
    }
    operator.does("kubernetes-secrets")
    operator.told = told


def on_postgres(operator: Operator) -> None:
    """A second home with its databases on Postgres, backed up, lost, and restored into another server."""
    operator.shell("nightmill down", "another home, on Postgres")
    home = operator.folder / "home-postgres"
    operator.environment["NIGHTMILL_HOME"] = str(home)
    with postgres() as server:
        uses(operator, server)
        operator.does("postgres")
        operator.shell(f"nightmill run PRESET --night {NIGHTS[1]}", "a night on Postgres")
        operator.does("back-up-postgres")
        operator.does("back-up-files")
        operator.shell("nightmill down", "the disk is lost")
    shutil.rmtree(home)
    home.mkdir()
    with postgres() as server:
        uses(operator, server)
        operator.does("restore-files")
        operator.does("restore-postgres")
        refuse_work(operator.does("restore-start"))
        operator.shell("nightmill down", "the end of Postgres")


def uses(operator: Operator, server: Postgres) -> None:
    """This server is the one that the guide calls db.internal, also for Postgres's own clients."""
    secret = operator.folder / "mlflow_database"
    secret.write_text(server.url("mlflow"))
    operator.told |= {
        "postgresql://nightmill:PASSWORD@db.internal/prefect": server.url("prefect"),
        "/run/secrets/mlflow_database": str(secret),
    }
    path = f"{operator.folder / 'bin'}:{Path(sys.executable).parent}:{server.environment['PATH']}"
    operator.environment |= server.environment | {
        "PATH": path, "NIGHTMILL_PREFECT_DATABASE": server.url("prefect"), "NIGHTMILL_MLFLOW_DATABASE": server.url("mlflow"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
