"""What all flows of one night share: the workspace, the logical night, what earlier nights left, and one engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

from prefect.runtime import flow_run

from flows.engines import engine_for
from flows.specs import NightlySpec
from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus, Documents, Frozen, TokenizerFiles
from spark_jobs.specs import TokenizerSpec
from tasks.engine import LOCK_WAIT_S, Engine, StepResult, engine_or_none, is_planned
from tasks.flow_runs import claim_flow_run
from tasks.ledger import Champion, champion_before, champion_to_beat
from tasks.locks import held
from tasks.workspace import Workspace, home, parse_night
from tasks.zombies import sweep_before_night
from training.manifests import CompressionChoice, ModelFolder

WHOLE_NIGHT = "nightly"  # lock of whoever runs a night from end to end


class FlowReport(Frozen):
    """What a flow did: its lines of the step table. `stopped` says why the night needs nothing more, if so."""

    night: str
    steps: tuple[StepResult, ...] = ()
    stopped: str = ""


@dataclass
class Night:
    """One night of one pipeline, as a flow sees it."""

    spec: NightlySpec
    night: str
    workspace: Workspace
    engine: Engine
    stopped: str = ""
    _first_result: int = field(default=0)

    def history(self) -> Corpus | None:
        """The corpus snapshot of the newest earlier night that got that far."""
        for night in reversed(self.workspace.nights_before(self.night)):
            if "corpus" in self.workspace.record(night).outputs:
                return self.workspace.output(night, "corpus", Corpus, "prepare-corpus")
        return None

    def champion(self) -> ModelFolder | None:
        """The champion as it was before this night, so that a rerun of the night trains on from the same model."""
        return self._load(champion_before(self.workspace, self.night))

    def trained_champion(self) -> ModelFolder | None:
        """What training goes on from: the champion, or the dense model that a compressed champion was made of."""
        champion = self.champion()
        dense = champion.parent("dense") if champion is not None else None
        return champion if dense is None else ModelFolder.load(self.workspace.at(dense.address))

    def candidate(self) -> tuple[str, ModelFolder]:
        """Name and folder of tonight's model that is put to the gate: the one asked for, or the best within the budget."""
        name = self.spec.gate.candidate
        if name == "best":
            recipes = self.spec.compress.recipes
            choice = self.find("choose", CompressionChoice, "compress-model") if recipes else None
            name = "dense" if choice is None or is_planned(choice) else choice.best
        if name == "dense":
            return name, self.find("export", ModelFolder, "train-model")
        return name, self.find(f"compress-{name}", ModelFolder, "compress-model")

    def champion_to_beat(self, candidate: ModelFolder) -> ModelFolder | None:
        """The champion that tonight's candidate is compared with."""
        if is_planned(candidate):
            return self.champion()
        return self._load(champion_to_beat(self.workspace, candidate.address, self.night))

    def _load(self, champion: Champion | None) -> ModelFolder | None:
        return None if champion is None else ModelFolder.load(self.workspace.at(champion.address))

    def find(self, step: str, handle: type[Any], producer: str) -> Any:
        """The output of an earlier flow of this night; in a plan, of a night where that flow has not run, a stand-in."""
        if self.engine.planning:
            promised = self.engine.promised.get(step)
            if promised is not None:
                return promised
        return self.workspace.output(self.night, step, handle, producer)

    def kept_tokenizer(self, history: Corpus | None) -> TokenizerFiles | None:
        """The tokenizer of earlier nights: the champion's vocabulary depends on it.

        Raises: RequestError if this night asks for another one.
        """
        if history is None:
            return None
        kept = TokenizerFiles.load(history.at(history.tokenizer.address))
        wanted = self.spec.tokenizer.model_dump(mode="json")
        made = TokenizerSpec.model_validate(kept.spec).model_dump(
            mode="json"
        )  # settings that came later: as they default
        changed = [name for name, value in wanted.items() if made[name] != value]
        if changed:
            raise RequestError(
                f"tokenizer.{changed[0]} is {wanted[changed[0]]!r}, but the tokenizer of night {kept.night} was made with "
                f"{made[changed[0]]!r} and every model of {self.workspace.name} uses it: set it back, or choose "
                "another `name` to start a new pipeline"
            )
        self.engine.note(
            StepResult(
                step="tokenizer",
                state="cached",
                why=f"kept from {kept.night}: the champion's vocabulary depends on it",
                rows=kept.num_rows,
                output=kept.address,
            )
        )
        if self.engine.planning:
            self.engine.promised["tokenizer"] = kept
        else:
            self.workspace.remember(self.night, "tokenizer", kept)
        return kept

    def nothing_new(self, raw: Documents, history: Corpus | None) -> bool:
        """Whether the night is over before it began. Raises: RequestError when there has never been a document."""
        if raw.num_rows != 0:
            return False
        if history is None:
            rejects = ", ".join(f"{n} {reason[7:]}" for reason, n in raw.counts.items() if reason.startswith("reject."))
            places = ", ".join(source.path or source.kind for source in self.spec.ingest.sources)
            raise RequestError(
                f"ingest: no document in {places}"
                + (f" ({rejects})" if rejects else "")
                + "; name a source with text in ingest.sources"
            )
        self.stopped = f"no new document since {history.night}"
        return True

    def report(self) -> FlowReport:
        return FlowReport(
            night=self.night, steps=tuple(self.engine.results[self._first_result :]), stopped=self.stopped
        )


@contextmanager
def open_night(spec: NightlySpec, night: str, whole: bool = False) -> Iterator[Night]:
    """The night as one flow sees it. A flow inside another shares its engine; the outermost one makes it.

    whole: this flow runs the night from end to end, also inside another flow.
    """
    claim_flow_run()
    outer = engine_or_none()
    if outer is not None:
        yield Night(spec, outer.night, outer.workspace, outer, _first_result=len(outer.results))
        return
    whole_night = whole or not flow_run.parent_flow_run_id
    with engine_for(spec, parse_night(night or scheduled_night()), whole_night=whole_night) as engine:
        yield Night(spec, engine.night, engine.workspace, engine)


@contextmanager
def alone(tonight: Night) -> Iterator[None]:
    """One whole night of a pipeline at a time, whoever started it: a night that meets another waits a minute for it, no longer. What the
    dead have left is put right first.

    Raises: StepBusy naming the process that works on the other.
    """
    if tonight.engine.planning:
        yield
        return
    sweep_before_night(home())
    with held(tonight.workspace.lock(WHOLE_NIGHT), LOCK_WAIT_S):
        yield


def scheduled_night() -> str:
    """The date (UTC) for which the scheduler planned this flow run: a late or repeated run keeps its night."""
    start = flow_run.scheduled_start_time
    return start.astimezone(UTC).date().isoformat() if start else ""
