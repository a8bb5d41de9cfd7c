"""The train job: check the request, start the ranks, hand back what rank 0 found.

torchrun --nproc-per-node 2 -m training.pretrain.main --request FILE     the same ranks, started by hand or on many nodes
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from spark_jobs.errors import DataError, RequestError, TrainingError
from spark_jobs.manifests import Corpus, TokenizerFiles, TokenShards
from spark_jobs.requests import Outcome, Request
from training.distill.loss import taught, token_divergence
from training.distill.served import ServedTeacher, check_served
from training.distill.teacher import check_length, check_vocabulary, teacher_of, vocabulary_of
from training.distill.told_text import ToldText, told_loss
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.pretrain.chunked_loss import install_loss_head
from training.pretrain.compiled_blocks import check_compiler
from training.pretrain.flops import model_flops_per_token
from training.pretrain.heldout import heldout_batches, heldout_rows
from training.pretrain.launch import launch_ranks, work_as_rank
from training.pretrain.local_training import ReplicaMesh
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.model import check_architecture, load_weights, model_config, model_kind, new_model
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.parallel import OutputLoss, on_logits, parallelize
from training.pretrain.run_state import FREE, identity_of
from training.pretrain.sequence_order import corpus_row_groups, row_facts
from training.pretrain.token_shards import Batch, Sequences
from training.pretrain.trainer import Material, plan_of, rank_positions, train_rank
from training.processes import die_with_parent
from training.specs import TrainSpec

SPEC = TrainSpec


def run(request: Request) -> Outcome:
    """Train on as many ranks as the spec says."""
    spec = TrainSpec.model_validate(request.spec)
    if spec.parallel.compile:
        check_compiler()
    check_request(request, spec)
    return launch_ranks(request, spec, train)


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
    config = _config(request, spec, tokenizer, corpus)
    model_kind(config, spec.objective)
    if champion is not None:
        check_architecture(config, champion)
    if spec.distill is not None and spec.distill.teacher == "served":
        check_served()
    teacher = teacher_of(request, spec.distill)
    if teacher is not None:
        check_vocabulary(teacher, f"tokenizer {tokenizer.address}", vocabulary_of(tokenizer.folder()))
        check_length(teacher, corpus.seq_len)


def _inputs(request: Request) -> tuple[Corpus, TokenizerFiles, ModelFolder | None]:
    champion = request.inputs.get("champion")
    return (
        Corpus.load(input_uri(request, "corpus")),
        TokenizerFiles.load(input_uri(request, "tokenizer")),
        ModelFolder.load(champion) if champion else None,
    )


def _start(request: Request) -> ModelFolder | None:
    """A model of whatever shape that is trained on as it is, in place of a champion."""
    start = request.inputs.get("start")
    return ModelFolder.load(start) if start else None


def _config(request: Request, spec: TrainSpec, tokenizer: TokenizerFiles, corpus: Corpus) -> PreTrainedConfig:
    start = _start(request)
    if start is None:
        return model_config(spec.model, tokenizer, corpus.seq_len)
    config: PreTrainedConfig = AutoConfig.from_pretrained(start.folder(), attn_implementation="sdpa", use_cache=False)
    return config


def train(request: Request, ranks: Ranks, why_restarted: str) -> Outcome:
    """One rank's part: build the model, spread it, train, publish."""
    spec = TrainSpec.model_validate(request.spec)
    corpus, tokenizer, champion = _inputs(request)
    if ranks.world_size != spec.ranks:
        raise TrainingError(
            f"the launcher started {ranks.world_size} ranks, the spec says {spec.ranks}: make them equal"
        )
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    config = _config(request, spec, tokenizer, corpus)
    model = new_model(config, spec.seed, spec.objective)
    before = champion or _start(request)
    if before is not None:
        load_weights(model, Path(before.folder()) / "model.safetensors")
    num_parameters = sum(p.numel() for p in model.parameters())
    out = Path(request.out)
    if ranks.is_first:
        (out / "data").mkdir(parents=True, exist_ok=True)
        (out / "scratch").mkdir(exist_ok=True)
        config.save_pretrained(out / "data")
    groups = corpus_row_groups(corpus, champion.night if champion else "")
    replay_ratio = float(corpus.spec.get("replay_ratio", 0.5))
    teacher = teacher_of(request, spec.distill)
    # Replicas that train on their own have state of their own rank each.
    free = FREE - {"ranks"} if spec.local is not None else FREE
    identity = identity_of(request.spec, free, corpus, before, *([teacher] if teacher else []))
    plan = plan_of(spec, before is not None, identity)
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
    learned = with_teacher(on_logits(loss, ranks.device), model, request, spec, ranks)
    shared = parallelize(model, placed, spec.parallel, spec.precision, loss, head, output_loss=learned)
    text = PackedText(sequences, Examples(spec, mesh, tokenizer), heldout)
    material: Material = text
    if spec.distill is not None and spec.distill.teacher == "served":
        reader = Tokenizer.from_file(str(Path(tokenizer.folder()) / "tokenizer.json"))
        heard = ToldText(text, ServedTeacher.of(spec.distill, reader, out / "scratch" / "teacher"))
        shares = [
            rank_positions(step, spec.sequences_per_step, mesh.degrees, ranks.rank) for step in range(plan.num_steps)
        ]
        heard.ask_all(shares, spec.micro_batch)
        material = heard
    facts = train_rank(shared, material, spec, plan, out, flops, why_restarted)
    fields = facts | {
        "model_type": config.model_type,
        "num_parameters": num_parameters,
        "resumed_from": before.address if before else "",
    }
    return Outcome(num_rows=facts.get("num_steps", 0), format="safetensors", fields=fields)


def with_teacher(
    loss: OutputLoss, model: PreTrainedModel, request: Request, spec: TrainSpec, ranks: Ranks
) -> OutputLoss | None:
    """The loss with the teacher's part, None if there is no teacher; layers that are learned too get their maps in `model`."""
    if spec.distill is not None and spec.distill.teacher == "served":
        return told_loss(loss, spec.distill)
    folder = teacher_of(request, spec.distill)
    if spec.distill is None or folder is None:
        return None
    divergence = token_divergence(spec.distill.temperature)
    return taught(loss, model, folder, spec.distill, divergence, spec.seed, ranks.device)


def main() -> int:
    parser = argparse.ArgumentParser(prog="torchrun -m training.pretrain.main", description=__doc__.splitlines()[0])
    parser.add_argument("--request", type=Path, required=True)
    request = Request.model_validate_json(parser.parse_args().request.read_text())
    die_with_parent(os.getppid())
    spec = TrainSpec.model_validate(request.spec)
    if os.environ["LOCAL_RANK"] == "0":
        check_request(request, spec)
    answer = work_as_rank(request, spec.parallel.offload, train)
    if os.environ["RANK"] == "0":
        sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "failure" in answer else 0


if __name__ == "__main__":
    raise SystemExit(main())
