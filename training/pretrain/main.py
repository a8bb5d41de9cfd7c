"""The train job: check the request, start the ranks, hand back what rank 0 found.

torchrun --nproc-per-node 2 -m training.pretrain.main --request FILE     the same ranks, started by hand or on many nodes
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from spark_jobs.errors import DataError, JobCrashed, NightmillError, RequestError, TrainingError
from spark_jobs.manifests import Corpus, TokenizerFiles, TokenShards
from spark_jobs.requests import Failure, Outcome, Request, failure_of
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.pretrain.chunked_loss import install_loss_head
from training.pretrain.flops import model_flops_per_token
from training.pretrain.heldout import heldout_batches, heldout_rows
from training.pretrain.local_training import ReplicaMesh
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, join_ranks, make_mesh, num_restarts
from training.pretrain.model import check_architecture, load_weights, model_config, model_kind, new_model
from training.pretrain.objectives import Examples
from training.pretrain.parallel import parallelize
from training.pretrain.profiling import record_collectives
from training.pretrain.progress import relayed_events
from training.pretrain.sequence_order import corpus_row_groups, row_facts
from training.pretrain.token_shards import Batch, Sequences
from training.pretrain.trainer import Material, plan_of, train_rank
from training.processes import die_with_parent, error_of, signal_name
from training.specs import TrainSpec

PEER_GRACE_S = 2.0  # the launcher looks every 0.1 s


def run(request: Request) -> Outcome:
    """Train on as many local ranks as the spec says.

    The launcher is torch elastic, which torchrun itself calls. On CPU the ranks are forked from this process, which has
    the libraries loaded and has run no operation yet; after CUDA has started a fork is not safe, so they are spawned.
    """
    spec = TrainSpec.model_validate(request.spec)
    check_request(request, spec)
    on_cuda = torch.cuda.is_available()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=spec.ranks,
        run_id="nightmill",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # a free port on loopback
        local_addr="localhost",
        max_restarts=spec.max_restarts,
        monitor_interval=0.1,
        start_method="spawn" if on_cuda else "fork",
    )
    launch = elastic_launch(config, run_rank)
    # A spawned rank does not inherit the answer's file descriptor: its events are passed on from the file they are in.
    relay = relayed_events(Path(request.out) / "scratch" / "events.jsonl") if on_cuda else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as failures:
        try:
            with relay:
                answers = launch(request.model_dump_json(), os.getpid(), failures)
        except ChildFailedError as err:
            raise _crash_of(err, _failure_file(failures, spec.max_restarts)) from err
    answer = answers[0]
    if "failure" in answer:
        raise error_of(Failure.model_validate(answer["failure"]))
    return Outcome.model_validate(answer["outcome"])


def _failure_file(failures: str, restart: int) -> Path:
    """Where the first rank to fail after `restart` restarts says why."""
    return Path(failures) / f"{restart}.json"


def _crash_of(error: ChildFailedError, first_failure: Path) -> NightmillError:
    """What the first rank to fail said; if none could (a kill), how it ended."""
    if first_failure.exists():
        return error_of(Failure.model_validate_json(first_failure.read_text()))
    rank, failure = error.get_first_failure()
    how = f"killed by {signal_name(-failure.exitcode)}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
    return JobCrashed(f"rank {rank} was {how}; run the step again, it continues from the newest checkpoint")


def check_request(request: Request, spec: TrainSpec) -> None:
    """Refuse early, from manifests and file bytes alone; no model is built.

    Raises: RequestError, DataError, each naming the thing, the value and what was wanted.
    """
    corpus, tokenizer, champion = _inputs(request)
    if corpus.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"corpus {corpus.address} has {corpus.vocab_size} token ids, tokenizer {tokenizer.address} "
            f"{tokenizer.vocab_size}: run step tokenize again with this tokenizer"
        )
    for night in corpus.nights:
        shards = TokenShards.load(corpus.at(night.tokens.address))
        shards.check_bytes()
        if (shards.vocab_size, shards.seq_len) != (corpus.vocab_size, corpus.seq_len):
            raise DataError(
                f"token shards {shards.address} have vocabulary {shards.vocab_size} and sequences of {shards.seq_len}, "
                f"corpus {corpus.address} says {corpus.vocab_size} and {corpus.seq_len}: tokenize that night again"
            )
    try:
        spec.parallel.degrees(spec.ranks).check_sequences(corpus.seq_len, corpus.vocab_size)
    except ValueError as error:
        raise RequestError(f"corpus {corpus.address}: {error}") from error
    num_sequences = sum(night.num_sequences for night in corpus.nights) - corpus.num_left_out
    if num_sequences < spec.sequences_per_step:
        raise DataError(
            f"corpus {corpus.address} has {num_sequences} sequences of {corpus.seq_len} tokens, one step wants "
            f"{spec.sequences_per_step} for {spec.ranks} ranks: add documents or lower train.sequences_per_step"
        )
    config = model_config(spec.model, tokenizer, corpus.seq_len)
    model_kind(config, spec.objective)
    if champion is not None:
        check_architecture(config, champion)


def _inputs(request: Request) -> tuple[Corpus, TokenizerFiles, ModelFolder | None]:
    champion = request.inputs.get("champion")
    return (
        Corpus.load(input_uri(request, "corpus")),
        TokenizerFiles.load(input_uri(request, "tokenizer")),
        ModelFolder.load(champion) if champion else None,
    )


def run_rank(request_json: str, launcher: int, failures: str) -> dict[str, Any]:
    """One rank. Returns {"outcome": ...} (of rank 0) or {"failure": ...}, which all ranks reach together.

    An error of this rank alone is left in a file of the folder `failures` and ends the rank. One that only says that a
    peer is gone waits a moment, so that the launcher sees the peer's end first and reports that; SIGTERM is the launcher
    itself stopping this rank because a peer ended, so it is no failure of this one either.
    """
    die_with_parent(launcher)
    restart = num_restarts()
    try:
        return _run_rank(request_json, _why_restarted(_failure_file(failures, restart - 1)))
    except SignalException:
        raise
    except (Exception, CheckpointException) as error:  # the latter is no Exception, and is what a full disk becomes
        if _says_peer_is_gone(error) or _says_peer_is_gone(error.__cause__):
            time.sleep(PEER_GRACE_S)
        else:
            with contextlib.suppress(FileExistsError), _failure_file(failures, restart).open("x") as file:
                file.write(failure_of(error).model_dump_json())
        raise


def _says_peer_is_gone(error: BaseException | None) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _why_restarted(failure: Path) -> str:
    """What the rank that failed last left in the file; one that was killed left nothing."""
    if not failure.exists():
        return "a rank was killed"
    return f"a rank failed: {Failure.model_validate_json(failure.read_text()).message}"


def _run_rank(request_json: str, why_restarted: str = "a rank ended") -> dict[str, Any]:
    request = Request.model_validate_json(request_json)
    spec = TrainSpec.model_validate(request.spec)
    if torch.cuda.is_available():
        record_collectives(Path(request.out) / "scratch" / "flight-recorder")
    ranks = join_ranks(spec.parallel.offload)
    try:
        outcome = _train(request, spec, ranks, why_restarted if num_restarts() else "")
    except TrainingError as error:  # a decision of all ranks, not a crash of one
        return {"failure": failure_of(error).model_dump()}
    dist.destroy_process_group()  # on success only: after a crash it would wait for peers that are gone
    return {"outcome": outcome.model_dump(mode="json")}


def _train(request: Request, spec: TrainSpec, ranks: Ranks, why_restarted: str) -> Outcome:
    corpus, tokenizer, champion = _inputs(request)
    if ranks.world_size != spec.ranks:
        raise TrainingError(
            f"the launcher started {ranks.world_size} ranks, the spec says {spec.ranks}: make them equal"
        )
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    config = model_config(spec.model, tokenizer, corpus.seq_len)
    model = new_model(config, spec.seed, spec.objective)
    if champion is not None:
        load_weights(model, Path(champion.folder()) / "model.safetensors")
    num_parameters = sum(p.numel() for p in model.parameters())
    out = Path(request.out)
    if ranks.is_first:
        (out / "data").mkdir(parents=True, exist_ok=True)
        (out / "scratch").mkdir(exist_ok=True)
        config.save_pretrained(out / "data")
    groups = corpus_row_groups(corpus, champion.night if champion else "")
    replay_ratio = float(corpus.spec.get("replay_ratio", 0.5))
    plan = plan_of(spec, champion is not None, _identity(request, corpus, champion))
    told = row_facts(corpus, groups, spec.order, plan.num_steps * spec.sequences_per_step)
    sequences = Sequences(groups, corpus.seq_len, tokenizer.pad_id, replay_ratio, spec.seed, told)
    heldout: list[Batch] = []
    if spec.early_stop.watch == "heldout":
        rows = heldout_rows(corpus, tokenizer, spec.early_stop.num_sequences)
        heldout = heldout_batches(rows, mesh, spec.micro_batch, tokenizer.pad_id, corpus.seq_len)
    flops = model_flops_per_token(model, corpus.seq_len)
    head = install_loss_head(model, spec.loss) if spec.loss.chunk_tokens else None
    loss = functools.partial(sum_cross_entropy, spec=spec.loss)
    placed = mesh if spec.local is None else ReplicaMesh.of(mesh)
    shared = parallelize(model, placed, spec.parallel, spec.precision, loss, head)
    material = Material(sequences, Examples(spec, mesh, tokenizer), heldout)
    facts = train_rank(shared, material, spec, plan, out, flops, why_restarted)
    fields = facts | {
        "model_type": config.model_type,
        "num_parameters": num_parameters,
        "resumed_from": champion.address if champion else "",
    }
    return Outcome(num_rows=facts.get("num_steps", 0), format="safetensors", fields=fields)


def _identity(request: Request, corpus: Corpus, champion: ModelFolder | None) -> str:
    """What a checkpoint may be resumed under: everything but ranks, how they share the work, and how they are kept going."""
    free = {"ranks", "parallel", "checkpoint_mode", "max_restarts", "profile"}
    if request.spec.get("local"):
        free.remove("ranks")  # each replica has state of its own
    spec = {k: v for k, v in request.spec.items() if k not in free}
    text = json.dumps([spec, corpus.digest, champion.digest if champion else ""], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(prog="torchrun -m training.pretrain.main", description=__doc__.splitlines()[0])
    parser.add_argument("--request", type=Path, required=True)
    request = Request.model_validate_json(parser.parse_args().request.read_text())
    die_with_parent(os.getppid())
    if os.environ["LOCAL_RANK"] == "0":
        check_request(request, TrainSpec.model_validate(request.spec))
    answer = _run_rank(request.model_dump_json())
    if os.environ["RANK"] == "0":
        sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "failure" in answer else 0


if __name__ == "__main__":
    raise SystemExit(main())
