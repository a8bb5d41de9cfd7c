"""Speed of training on CPU ranks: this trainer, the Trainer of transformers, and a bare loop of the same model.

    python -m benchmarks.train [--ranks 2] [--repeats 5] [--steps 12] [--chunk-tokens 128] [--profile]

Real text of ../shared/data/text, a vocabulary trained on it, the demo's Llama shape, fp32, AdamW with clipping, the
logits of a whole micro-batch. All three see the same packed sequences (mask of documents, positions that start again)
in as many processes. They take turns; each turn is in processes of its own, which have the allocator that such ranks have
(training/pretrain/allocator.py: this trainer keeps freed memory, the others as users run them do not), and begins with
steps that do not count. The table has the median of the turns and their spread, and how the others do where freed
memory is kept for them. The Trainer has its defaults, without reports, progress bar and the search for unused
parameters; it runs on accelerate, and vs_trainer is null without it.
The bare loop has its batches and masks ready, and does steps only: no curve, no TensorBoard.

Ends with one JSON line: {"tokens_per_s", "vs_trainer", "vs_bare_loop", "loader_share", "packing_ratio", "stall_ms",
"resume_s", "matmul_share", "stall_async_ms", "vs_trainer_memory_kept", "vs_bare_loop_memory_kept"}. tokens_per_s: real
tokens of all ranks, without padding. packing_ratio: real tokens a second of short documents packed, over those padded
to the longest of their batch. stall_ms: what a blocking checkpoint adds to training, stall_async_ms: one in the
background. resume_s: from a rank being up to the end of its first step after a checkpoint. matmul_share: of the fp32
matrix products that all ranks reach together; FLOPs as in training/pretrain/flops.py.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import importlib
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.parity import on_ranks
from spark_jobs.manifests import TokenizerFiles
from training.pretrain.allocator import keep_freed_memory
from training.pretrain.chunked_loss import install_loss_head
from training.pretrain.flops import model_flops_per_token
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Ranks, make_mesh
from training.pretrain.model import model_config, new_model
from training.pretrain.objectives import Examples, PackedText
from training.pretrain.parallel import parallelize
from training.pretrain.sequence_order import RowGroup
from training.pretrain.token_shards import Batch, Sequences, make_batch
from training.pretrain.trainer import Plan, Training
from training.processes import num_threads
from training.specs import TrainSpec

TEXTS = Path(__file__).parent.parent.parent / "shared" / "data" / "text"
SEQ_LEN, VOCAB_SIZE, SPECIAL = 256, 8192, ["<pad>", "<bos>", "<eos>"]
NUM_SPEECHES, NUM_PAGES = 40, 100
SHORT_TOKENS = 64  # the longest of a short document
OPEN_ROWS = 50
WARM_STEPS = 3  # of a turn, not counted
CHECKPOINT_EVERY, TOUCHED_STEPS = 20, 5
MATMUL_SIZE, MATMUL_S = 1024, 1.5
Row = tuple[np.ndarray, np.ndarray]  # tokens and document lengths, int32


@dataclass(frozen=True)
class Setting:
    """What all contestants share. sequences: of a step, over all ranks."""

    folder: Path
    ranks: int
    sequences: int
    hidden: int
    layers: int
    chunk_tokens: int
    repeats: int
    steps: int

    def spec(self, **changes: Any) -> TrainSpec:
        model = {"hidden_size": self.hidden, "num_layers": self.layers, "intermediate_size": self.hidden * 8 // 3}
        common = {
            "model": model, "sequences_per_step": self.sequences, "micro_batch": self.sequences, "ranks": self.ranks,
            "num_steps": 10_000, "checkpoint_every": 10_000, "parallel": {"strategy": "ddp"},
        }  # fmt: skip
        return TrainSpec.model_validate(common | changes)


def documents() -> Iterator[str]:
    """Paragraphs of novels, plays, speeches and encyclopedia articles, and pages of documentation."""
    names = ("moby-dick.txt", "botchan.txt", "tinyshakespeare.txt", "wiki.*.txt")
    speeches = sorted((TEXTS / "sotu").glob("*.txt"))[:NUM_SPEECHES]
    for path in [*(path for name in names for path in sorted(TEXTS.glob(name))), *speeches]:
        yield from (part for part in path.read_text(errors="replace").split("\n\n") if part.strip())
    with gzip.open(TEXTS / "python_docs_rst.jsonl.gz", "rt") as lines:
        yield from (json.loads(line)["text"] for _, line in zip(range(NUM_PAGES), lines, strict=False))


def write_rows(folder: Path) -> None:
    """packed, short and single .parquet: all documents packed, short ones packed, the same ones with a row each."""
    texts = [text.strip() for text in documents()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    ids = [[1, *encoding.ids, 2] for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = [ids[i] for i in order]
    short = [document for document in shuffled if len(document) <= SHORT_TOKENS]
    for name, rows in (("packed", pack(shuffled)), ("short", pack(short)), ("single", [(d, [len(d)]) for d in short])):
        columns = {"tokens": [row[0] for row in rows], "doc_lengths": [row[1] for row in rows]}
        pq.write_table(
            pa.table(columns, pa.schema([(c, pa.list_(pa.int32())) for c in columns])), folder / f"{name}.parquet"
        )


def pack(ids: Sequence[list[int]]) -> list[tuple[list[int], list[int]]]:
    """First fit among the rows last opened; a document longer than a row is cut."""
    rows: list[tuple[list[int], list[int]]] = []
    for piece in (document[i : i + SEQ_LEN] for document in ids for i in range(0, len(document), SEQ_LEN)):
        row = next((r for r in rows[-OPEN_ROWS:] if len(r[0]) + len(piece) <= SEQ_LEN), None)
        if row is None:
            rows.append(row := ([], []))
        row[0].extend(piece)
        row[1].append(len(piece))
    return rows[:-OPEN_ROWS]


def read_rows(path: Path) -> list[Row]:
    table = pq.read_table(path, use_threads=False)
    columns = [table.column(name).to_pylist() for name in ("tokens", "doc_lengths")]
    return [(np.array(ids, np.int32), np.array(lengths, np.int32)) for ids, lengths in zip(*columns, strict=True)]


def tokenizer_facts() -> TokenizerFiles:
    """What the model's configuration asks of a tokenizer."""
    return TokenizerFiles(
        step="tokenizer", key="benchmark", night="", num_rows=VOCAB_SIZE, files=(), format="", spec={}, code={},
        libraries={}, vocab_size=VOCAB_SIZE, pad_id=0, bos_id=1, eos_id=2,
    )  # fmt: skip


def start_training(setting: Setting, ranks: Ranks, spec: TrainSpec, out: Path) -> Training:
    """As training.pretrain.main starts it, on the packed rows."""
    (out / "scratch").mkdir(parents=True, exist_ok=True)
    dist.barrier()
    mesh = make_mesh(ranks, spec.parallel.degrees(ranks.world_size))
    model = new_model(model_config(spec.model, tokenizer_facts(), SEQ_LEN), spec.seed)
    flops = model_flops_per_token(model, SEQ_LEN)
    head = install_loss_head(model, spec.loss) if spec.loss.chunk_tokens else None
    shared = parallelize(
        model, mesh, spec.parallel, spec.precision, functools.partial(sum_cross_entropy, spec=spec.loss), head
    )
    path = str(setting.folder / "packed.parquet")
    groups = [RowGroup(path, 0, pq.read_metadata(path).num_rows, False)]
    material = PackedText(Sequences(groups, SEQ_LEN, 0, 0.0, spec.seed), Examples(spec, mesh, tokenizer_facts()))
    return Training(shared, material, spec, Plan(spec.num_steps, spec.optimizer.learning_rate, "benchmark"), out, flops)


def stop_training(training: Training) -> None:
    training.inputs.close()
    if training.progress is not None:
        training.progress.close()


def nightmill_turn(setting: Setting, ranks: Ranks, turn: int, **changes: Any) -> dict[str, float]:
    """tokens_per_s and loader_share; of rank 0, nothing on the others."""
    out = setting.folder / "-".join(["nightmill", *changes, str(turn)])
    training = start_training(setting, ranks, setting.spec(seed=turn, **changes), out)
    for _ in range(WARM_STEPS):
        training.advance()
    before, began = training.progress.num_tokens if training.progress else 0, time.perf_counter()
    for _ in range(setting.steps):
        training.advance()
    seconds = time.perf_counter() - began
    after = training.progress.num_tokens if training.progress else 0
    stop_training(training)
    if not ranks.is_first:
        return {}
    events = [json.loads(line) for line in (out / "scratch" / "events.jsonl").read_text().splitlines()]
    shares = [event["loader_share"] for event in events[-setting.steps :]]
    return {"tokens_per_s": (after - before) / seconds, "loader_share": statistics.fmean(shares)}


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Arguments of a causal model of transformers, which shifts the labels itself."""
    return {
        "input_ids": batch.tokens_BT, "attention_mask": batch.attention_mask(), "position_ids": batch.positions_BT,
        "labels": batch.labels_BT,
    }  # fmt: skip


def num_tokens(rows: Sequence[Row]) -> int:
    return sum(len(tokens) for tokens, _ in rows)


def bare_turn(setting: Setting, ranks: Ranks, steps: Sequence[Sequence[Sequence[Row]]], pad_to: int = 0) -> float:
    """Real tokens a second. steps[i][rank] are the rows of a rank, padded to `pad_to` or to the longest of them."""
    spec = setting.spec()
    model = new_model(model_config(spec.model, tokenizer_facts(), SEQ_LEN), 0)
    forward = DistributedDataParallel(model) if ranks.world_size > 1 else model
    own = [step[ranks.rank] for step in steps]
    batches = [inputs_of(make_batch(rows, pad_to or max(len(r[0]) for r in rows), 0)) for rows in own]
    wanted = spec.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), wanted.learning_rate, (wanted.beta1, wanted.beta2), weight_decay=wanted.weight_decay
    )
    began = 0.0
    for number, inputs in enumerate(batches):
        if number == WARM_STEPS:
            began = time.perf_counter()
        forward(**inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), wanted.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    return sum(num_tokens(rows) for step in steps[WARM_STEPS:] for rows in step) / seconds


def in_steps(rows: Sequence[Row], setting: Setting, turn: int) -> list[list[Sequence[Row]]]:
    """Rows of each step and rank, other ones each turn."""
    share, count = setting.sequences // setting.ranks, WARM_STEPS + setting.steps
    first = turn * count * setting.sequences % max(1, len(rows) - count * setting.sequences)
    places = range(first, first + count * setting.sequences, setting.sequences)
    return [[rows[at + r * share : at + (r + 1) * share] for r in range(setting.ranks)] for at in places]


def padded_steps(rows: Sequence[Row], setting: Setting, turn: int) -> list[list[Sequence[Row]]]:
    """The same number of places a rank as packed steps have, each row padded to the longest beside it."""
    budget = setting.sequences // setting.ranks * SEQ_LEN
    at, steps = turn * 2000, []
    for _ in range(WARM_STEPS + setting.steps):
        parts: list[Sequence[Row]] = []
        for _ in range(setting.ranks):
            size, longest = 0, 0
            while (size + 1) * max(longest, len(rows[(at + size) % len(rows)][0])) <= budget:
                longest = max(longest, len(rows[(at + size) % len(rows)][0]))
                size += 1
            parts.append([rows[(at + i) % len(rows)] for i in range(size)])
            at += size
        steps.append(parts)
    return steps


def trainer_turn(setting: Setting, ranks: Ranks, steps: Sequence[Sequence[Sequence[Row]]]) -> float:
    """Real tokens a second of the Trainer of transformers over the same rows."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    spec, ends = setting.spec(), list[float]()

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    wanted = spec.optimizer
    arguments = TrainingArguments(
        output_dir=str(setting.folder / "trainer"), max_steps=len(steps), use_cpu=True, ddp_backend="gloo",
        per_device_train_batch_size=setting.sequences // setting.ranks, learning_rate=wanted.learning_rate,
        adam_beta1=wanted.beta1, adam_beta2=wanted.beta2, weight_decay=wanted.weight_decay,
        max_grad_norm=wanted.clip_norm,
        save_strategy="no", report_to="none", ddp_find_unused_parameters=False, disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    trainer = InOrder(
        model=new_model(model_config(spec.model, tokenizer_facts(), SEQ_LEN), 0), args=arguments, callbacks=[Clock()],
        train_dataset=[row for step in steps for part in step for row in part],
        data_collator=lambda rows: inputs_of(make_batch(rows, SEQ_LEN, 0)),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):  # noqa: PTH123
        trainer.train()
    tokens = sum(num_tokens(part) for step in steps[WARM_STEPS:] for part in step)
    return tokens / (ends[-1] - ends[WARM_STEPS - 1])


def matmul_peak(ranks: Ranks) -> float:
    """FLOP/s of square fp32 matrix products on all ranks at once."""
    a, b = torch.randn(MATMUL_SIZE, MATMUL_SIZE), torch.randn(MATMUL_SIZE, MATMUL_SIZE)
    out = a @ b
    dist.barrier()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < MATMUL_S:
        torch.mm(a, b, out=out)
        count += 1
    total = torch.tensor(2.0 * MATMUL_SIZE**3 * count / (time.perf_counter() - began), dtype=torch.float64)
    dist.all_reduce(total)
    return float(total)


def checkpoint_times(setting: Setting, ranks: Ranks, mode: str) -> dict[str, list[float]]:
    """stall: seconds that each checkpoint adds to the step that begins it and those after it, in which it may still be
    written. resume: seconds from nothing to the end of the first step after the newest checkpoint."""
    out = setting.folder / f"checkpointed-{mode}"
    spec = setting.spec(checkpoint_every=CHECKPOINT_EVERY, checkpoint_mode=mode)
    last = CHECKPOINT_EVERY * setting.repeats
    training = start_training(setting, ranks, spec, out)
    seconds = [0.0]  # of each step; the first is number 1
    for _ in range(last + TOUCHED_STEPS):
        began = time.perf_counter()
        training.advance()
        seconds.append(time.perf_counter() - began)
    training.saver.wait()
    stop_training(training)
    plain = [s for step, s in enumerate(seconds) if step % CHECKPOINT_EVERY >= TOUCHED_STEPS]
    touched = [seconds[at : at + TOUCHED_STEPS] for at in range(CHECKPOINT_EVERY, last + 1, CHECKPOINT_EVERY)]
    stall = [sum(steps) - TOUCHED_STEPS * statistics.median(plain) for steps in touched]
    return {"stall": stall, "resume": [resume_time(setting, ranks, spec, out, last) for _ in range(setting.repeats)]}


def resume_time(setting: Setting, ranks: Ranks, spec: TrainSpec, out: Path, step: int) -> float:
    dist.barrier()
    began = time.perf_counter()
    training = start_training(setting, ranks, spec, out)
    assert training.state.step == step, f"resumed at {training.state.step}, the newest checkpoint is of {step}"
    training.advance()
    seconds = time.perf_counter() - began
    stop_training(training)
    return seconds


@dataclass(frozen=True)
class Contestant:
    """turn: what one of its ranks does in a turn, given its number; at least tokens_per_s. keeps_memory: how its ranks'
    allocator is set."""

    turn: Callable[[Ranks, int], dict[str, float]]
    keeps_memory: bool = False


def contestants(setting: Setting) -> dict[str, Contestant]:
    packed, short, single = (read_rows(setting.folder / f"{name}.parquet") for name in ("packed", "short", "single"))

    def nightmill(**changes: Any) -> Contestant:
        return Contestant(lambda ranks, turn: nightmill_turn(setting, ranks, turn, **changes), keeps_memory=True)

    def bare(rows: list[Row], keeps_memory: bool = False) -> Contestant:
        def turn(ranks: Ranks, number: int) -> dict[str, float]:
            return {"tokens_per_s": bare_turn(setting, ranks, in_steps(rows, setting, number), SEQ_LEN)}

        return Contestant(turn, keeps_memory)

    def trainer(ranks: Ranks, turn: int) -> dict[str, float]:
        return {"tokens_per_s": trainer_turn(setting, ranks, in_steps(packed, setting, turn))}

    def padded(ranks: Ranks, turn: int) -> dict[str, float]:
        return {"tokens_per_s": bare_turn(setting, ranks, padded_steps(single, setting, turn))}

    found = {
        "nightmill": nightmill(),
        f"nightmill, loss in chunks of {setting.chunk_tokens}": nightmill(loss={"chunk_tokens": setting.chunk_tokens}),
        "nightmill, FSDP2": nightmill(parallel={}),
        "bare loop": bare(packed),
        "bare loop, freed memory kept": bare(packed, keeps_memory=True),
        "short, packed": bare(short),
        "short, padded": Contestant(padded),
    }
    if importlib.util.find_spec("accelerate") is None:
        return found
    importlib.import_module("transformers.trainer")  # once, not in every turn
    return found | {
        "Trainer": Contestant(trainer),
        "Trainer, freed memory kept": Contestant(trainer, keeps_memory=True),
    }


def on_own_ranks(setting: Setting, function: Callable[[Ranks], Any], keeps_memory: bool = True) -> Any:
    """What `function` returns on the first of new ranks, which are set up as a launcher and join_ranks do."""

    def start(ranks: Ranks) -> Any:
        threads, world_size = num_threads(ranks.world_size), ranks.world_size
        facts = {"RANK": ranks.rank, "LOCAL_RANK": ranks.rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
        os.environ.update({name: str(value) for name, value in (facts | {"OMP_NUM_THREADS": threads}).items()})
        torch.set_num_threads(threads)
        if keeps_memory:
            keep_freed_memory()
        return function(ranks)

    return on_ranks(start, setting.ranks)[0]


def measure(setting: Setting) -> dict[str, Any]:
    """Turns of all contestants, each time another one first; then checkpoints."""
    runs = contestants(setting)
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    peaks = []
    for number in range(setting.repeats):
        peaks.append(on_own_ranks(setting, matmul_peak))
        for name in [*list(runs)[number % len(runs) :], *list(runs)[: number % len(runs)]]:
            contestant = runs[name]
            run = functools.partial(_turn_of, contestant, number)
            turns[name].append(on_own_ranks(setting, run, contestant.keeps_memory))
    checkpoints = {
        mode: on_own_ranks(setting, lambda ranks, mode=mode: checkpoint_times(setting, ranks, mode))
        for mode in ("blocking", "async")
    }
    return {"turns": turns, "peaks": peaks, "checkpoints": checkpoints} | on_own_ranks(setting, lambda _: size(setting))


def _turn_of(contestant: Contestant, number: int, ranks: Ranks) -> dict[str, float]:
    return contestant.turn(ranks, number)


def size(setting: Setting) -> dict[str, float]:
    """parameters, and FLOPs a token."""
    model = new_model(model_config(setting.spec().model, tokenizer_facts(), SEQ_LEN), 0)
    return {"flops": model_flops_per_token(model, SEQ_LEN), "parameters": sum(p.numel() for p in model.parameters())}


def profile_steps(setting: Setting, ranks: Ranks) -> None:
    """Print where the time of rank 0's steps goes."""
    training = start_training(setting, ranks, setting.spec(), setting.folder / "profiled")
    for _ in range(WARM_STEPS):
        training.advance()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(setting.steps):
            training.advance()
    stop_training(training)
    if ranks.is_first:
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=60))


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The JSON line. Ratios are taken within a turn, then the median."""
    turns = {name: [turn["tokens_per_s"] for turn in runs] for name, runs in found["turns"].items()}

    def ratio(name: str, other: str) -> float | None:
        if other not in turns:
            return None
        return round(float(statistics.median(a / b for a, b in zip(turns[name], turns[other], strict=True))), 3)

    blocking, background = (found["checkpoints"][mode] for mode in ("blocking", "async"))
    speed = statistics.median(turns["nightmill"])
    return {
        "tokens_per_s": round(speed, 1),
        "vs_trainer": ratio("nightmill", "Trainer"),
        "vs_bare_loop": ratio("nightmill", "bare loop"),
        "loader_share": round(statistics.median(turn["loader_share"] for turn in found["turns"]["nightmill"]), 5),
        "packing_ratio": ratio("short, packed", "short, padded"),
        "stall_ms": round(1000 * statistics.median(blocking["stall"]), 1),
        "resume_s": round(statistics.median(blocking["resume"]), 3),
        "matmul_share": round(found["flops"] * speed / statistics.median(found["peaks"]), 3),
        "stall_async_ms": round(1000 * statistics.median(background["stall"]), 1),
        "vs_trainer_memory_kept": ratio("nightmill", "Trainer, freed memory kept"),
        "vs_bare_loop_memory_kept": ratio("nightmill", "bare loop, freed memory kept"),
    }


def print_table(found: dict[str, Any]) -> None:
    print(f"{found['parameters']:,} parameters, {found['flops'] / 1e6:.2f} MFLOPs a token; "
          f"fp32 matrix products {statistics.median(found['peaks']) / 1e9:.1f} GFLOP/s")  # fmt: skip
    print("| | real tokens/s | slowest | fastest |\n|---|---|---|---|")
    for name, turns in found["turns"].items():
        speeds = [turn["tokens_per_s"] for turn in turns]
        print(f"| {name} | {statistics.median(speeds):,.0f} | {min(speeds):,.0f} | {max(speeds):,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=8, help=f"of {SEQ_LEN} tokens in a step, over all ranks")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--chunk-tokens", type=int, default=128, help="train.loss.chunk_tokens of the second row")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contestant")
    parser.add_argument("--steps", type=int, default=12, help="counted in a turn")
    parser.add_argument("--profile", action="store_true", help="print a profile of the steps instead")
    asked = vars(parser.parse_args())
    profiled = asked.pop("profile")
    print(f"{datetime.now(UTC):%Y-%m-%d} on {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(folder=Path(folder), **asked)
        write_rows(setting.folder)
        if profiled:
            on_own_ranks(setting, lambda ranks: profile_steps(setting, ranks))
            return
        found = measure(setting)
    print_table(found)
    print(json.dumps(summary(found)))


if __name__ == "__main__":
    main()
