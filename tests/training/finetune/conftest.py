"""A small workspace to fine-tune in: labelled sets from rows, and untrained models of three families."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from spark_jobs.manifests import MANIFEST, FileEntry, Handle, LabelledSet, file_sha256
from spark_jobs.requests import Request
from training.manifests import ModelFolder, TaskCheckpoint, TaskScorecard
from training.processes import in_fresh_process

torch.set_num_threads(1)  # no OpenMP pool, so that tests may fork ranks from this process

SPAN = pa.struct([("start", pa.int32()), ("end", pa.int32()), ("label", pa.string())])
MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
COLUMNS = pa.schema(
    [(name, pa.string()) for name in ("id", "split", "source", "text", "pair")]
    + [("labels", pa.list_(pa.string())), ("value", pa.float64())]
    + [(name, pa.list_(pa.string())) for name in ("tokens", "tags")]
    + [("spans", pa.list_(SPAN)), ("target", pa.string()), ("messages", pa.list_(MESSAGE))]
    + [(name, pa.string()) for name in ("chosen", "rejected", "group", "made_by", "made_from")]
)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>"]
WORDS = [
    "red", "blue", "green", "big", "small", "cat", "dog", "sun", "moon", "runs", "sleeps", "sees", "the", "a", "and",
    "one", "two", "three", "good", "bad", "who", "what", "where", "user", "assistant", "system", ":", ".", "?", "!",
    "[", "]", "<", ">", "/", "E1", "E2", "e1", "e2", "yes", "no",
]  # fmt: skip
NIGHT = "2026-11-26"


def publish(kind: type[Handle], folder: Path, num_rows: int, **fields: Any) -> Any:
    """Write the manifest of what lies in `folder`, as the step engine would, and load it."""
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


class Workspace:
    """Publishes labelled sets and models under one folder, and runs the fine-tuning jobs in child processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.numbers = itertools.count(1)

    def _folder(self, kind: type[Handle], step: str) -> Path:
        folder = self.root / kind.kind / f"{step}-{next(self.numbers):016x}"
        (folder / "data").mkdir(parents=True)
        return folder

    def labelled(self, task: str, rows: Sequence[dict[str, Any]], label_set: Sequence[str] = ()) -> LabelledSet:
        """rows: columns by name, the rest null; split is train and the id of the content where not given."""
        full = [
            {"split": "train", "source": "test", "made_by": "", "made_from": "", "id": row_id(row)} | row
            for row in rows
        ]
        full.sort(key=lambda row: row["id"])
        folder = self._folder(LabelledSet, "label")
        table = pa.table({f.name: pa.array([row.get(f.name) for row in full], f.type) for f in COLUMNS})
        pq.write_table(table, folder / "data" / "part-00000.parquet")
        counts = {
            f"num_{split}": sum(row["split"] == split for row in full) for split in ("train", "validation", "test")
        }
        made: LabelledSet = publish(
            LabelledSet, folder, len(full), task=task, label_set=tuple(sorted(label_set)), **counts
        )
        return made

    def model(self, model: Any, tokenizer: PreTrainedTokenizerFast) -> ModelFolder:
        folder = self._folder(ModelFolder, "import-model")
        model.save_pretrained(folder / "data")
        tokenizer.save_pretrained(folder / "data")
        size = sum(p.numel() for p in model.parameters())
        made: ModelFolder = publish(
            ModelFolder, folder, 1, format="safetensors", scheme="dense", num_parameters=size, weight_bytes=4 * size,
            effective_bits=32.0,
        )  # fmt: skip
        return made

    def finetune(self, labelled: LabelledSet, base: ModelFolder, spec: dict[str, Any]) -> TaskCheckpoint:
        from training.finetune.main import run
        from training.finetune_spec import FinetuneSpec

        whole = FinetuneSpec.model_validate(spec).model_dump(mode="json")
        inputs = {"labelled": labelled, "base": base}
        made: TaskCheckpoint = self._job(run, TaskCheckpoint, "finetune", whole, inputs)
        return made

    def export(self, checkpoint: TaskCheckpoint, base: ModelFolder, labelled: LabelledSet) -> ModelFolder:
        from training.finetune.export import run

        inputs = {"checkpoint": checkpoint, "base": base, "labelled": labelled}
        made: ModelFolder = self._job(run, ModelFolder, "export-task", {}, inputs)
        return made

    def score(self, model: ModelFolder, labelled: LabelledSet, spec: dict[str, Any]) -> TaskScorecard:
        from training.finetune.score import run

        made: TaskScorecard = self._job(run, TaskScorecard, "score-task", spec, {"model": model, "labelled": labelled})
        return made

    def trained(self, labelled: LabelledSet, base: ModelFolder, spec: dict[str, Any]) -> ModelFolder:
        return self.export(self.finetune(labelled, base, spec), base, labelled)

    def _job(self, run: Any, kind: type[Handle], step: str, spec: dict[str, Any], inputs: dict[str, Handle]) -> Any:
        folder = self._folder(kind, step)
        request = Request(
            job=step,
            spec=spec,
            inputs={role: handle.uri for role, handle in inputs.items()},
            out=str(folder),
            night=NIGHT,
        )

        def work() -> dict[str, Any]:
            answer: dict[str, Any] = run(request).model_dump(mode="json")
            return answer

        outcome = in_fresh_process(work)
        fields = outcome["fields"] | {"format": outcome["format"], "counts": outcome["counts"], "spec": spec}
        return publish(kind, folder, outcome["num_rows"], **fields)


def row_id(row: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(row.items())).encode()).hexdigest()[:32]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def words() -> list[str]:
    """What the tokenizer knows as one token each."""
    return list(WORDS)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A word-level tokenizer. wrapped: puts [CLS] and [SEP] around, as BERT's; else </s> behind, as T5's, where closed."""

    def make(wrapped: bool = True, closed: bool = False) -> PreTrainedTokenizerFast:
        vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if wrapped:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
            )  # fmt: skip
        elif closed:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
            eos_token="</s>", bos_token="[CLS]", model_max_length=64,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"] if wrapped else ["input_ids", "attention_mask"],
        )  # fmt: skip

    return make


@pytest.fixture
def bert(workspace: Workspace, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> ModelFolder:
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    return workspace.model(BertModel(config), tokenizer)


@pytest.fixture
def llama(workspace: Workspace, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> ModelFolder:
    tokenizer = make_tokenizer(wrapped=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=4,
    )  # fmt: skip
    return workspace.model(LlamaForCausalLM(config), tokenizer)


@pytest.fixture
def t5(workspace: Workspace, make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> ModelFolder:
    tokenizer = make_tokenizer(wrapped=False, closed=True)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0,
        eos_token_id=4, decoder_start_token_id=0, dropout_rate=0.0,
    )  # fmt: skip
    return workspace.model(T5ForConditionalGeneration(config), tokenizer)
