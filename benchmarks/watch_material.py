"""Texts, a model and its answers for `benchmarks.watch`: what is usual, and what drifts are made of."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedModel

from training.evaluate.documents import load_tokenizer
from training.watch.baseline import Baseline, training_baseline
from training.watch.bins import LENGTH_EDGES, NUM_BUCKETS, buckets_of
from training.watch.corpus_counts import CorpusCounts
from training.watch.reference import Texts
from training.watch.sketch import TrafficSketch
from training.watch.snapshot import counts_of, token_nats

DATA = Path(__file__).parents[2] / "shared" / "data"
STORIES = DATA / "models" / "stories260k"
BOS, EOS = 1, 2
MIN_CHARS, MAX_CHARS = (
    120,
    600,
)  # English of 600 characters is some 350 tokens: none is cut by the 512 that the model sees
BEGINNING, ANSWER = 16, 48  # tokens
NUM_SCORED = 256


@dataclass(frozen=True)
class Prompt:
    """nats: of every token but the first, which has beginning-of-text before it here."""

    text: str
    ids: list[int]
    nats: float


@dataclass(frozen=True)
class Material:
    """pools: prompts by name; `usual` are of the reference's law and not in it, in the order of their books. answers: by name."""

    baseline: Baseline
    pools: dict[str, list[Prompt]]
    answers: dict[str, list[list[int]]]


def make(num_reference: int = 2048) -> Material:
    model = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    encoder = load_tokenizer(STORIES)
    training, usual = _split(_english())
    limit = model.config.max_position_embeddings - 1
    drawn = [encoder.encode(text, add_special_tokens=False).ids[:limit] for text in _draw(training, num_reference, 1)]
    scored = drawn[:: len(drawn) // NUM_SCORED]  # of every book
    sketch = TrafficSketch("models/reference")
    for ids in drawn:
        sketch.add(encoder.decode(ids), ids, (), None, "stop")
    texts = sketch.flush()
    healthy = _answers(model, scored)
    for ids, answer in zip(scored, healthy, strict=False):
        sketch.add("", ids[:BEGINNING], answer, None, "length")
    sizes = np.array([len(ids) for ids in drawn])
    counted = CorpusCounts(
        lengths=np.histogram(sizes, [*LENGTH_EDGES, 2**40])[0].astype(float),
        buckets=np.bincount(buckets_of(np.concatenate(drawn)), minlength=NUM_BUCKETS).astype(float),
        drawn=[np.array(ids, np.int32) for ids in drawn],
        num_documents=len(drawn),
        num_tokens=int(sizes.sum()),
    )
    counts = counts_of(texts, sketch.flush(), counted, (0, BOS, EOS))
    nats = token_nats(model, scored, BOS)
    baseline = training_baseline(counts, Texts(buckets=[buckets_of(ids) for ids in drawn], nats=nats))
    pools = {name: _prompts(model, encoder, told) for name, told in _pools(usual).items()}
    return Material(baseline, pools, {"usual": healthy, "circling": _answers(_without_attention(model), scored)})


def _pools(usual: list[str]) -> dict[str, list[str]]:
    """Names and texts. Usual are all of that half, in the order of their books; what is changed is of every twelfth."""
    some = usual[::12]
    return {
        "usual": usual,
        "japanese": _paragraphs((DATA / "text" / "wagahaiwa_nekodearu.txt").read_text())[:300],
        "german": _xquad("de")[:300],
        "python docs": _python_docs()[::7][:300],
        "shorter": [" ".join(text.split()[: max(3, len(text.split()) // 4)]) for text in some],
        "longer": [" ".join(usual[i : i + 4]) for i in range(0, len(usual) - 4, 12)],
        "shouting": [text.upper() for text in some],
    }


def _english() -> list[str]:
    books = [DATA / "text" / name for name in ("moby-dick.txt", "botchan.txt", "tinyshakespeare.txt")]
    speeches = sorted((DATA / "text" / "sotu").glob("*.txt"))[::4]
    return [p for path in (*books, *speeches) for p in _paragraphs(path.read_text(errors="replace"))]


def _paragraphs(text: str) -> list[str]:
    """Paragraphs of some length, longer ones cut at a sentence or a line."""
    pieces = []
    for block in re.split(r"\n\s*\n", text):
        flat = " ".join(block.split())
        while len(flat) > MAX_CHARS:
            cut = max((m.end() for m in re.finditer(r"[.!?。] ?", flat[:MAX_CHARS])), default=MAX_CHARS)
            pieces.append(flat[:cut].strip())
            flat = flat[cut:]
        pieces.append(flat)
    return [piece for piece in pieces if len(piece) >= MIN_CHARS]


def _xquad(language: str) -> list[str]:
    told = json.loads((DATA / "labelled" / f"xquad.{language}.json").read_text())["data"]
    return [p["context"][:MAX_CHARS] for article in told for p in article["paragraphs"]]


def _python_docs() -> list[str]:
    with gzip.open(DATA / "text" / "python_docs_rst.jsonl.gz", "rt") as stream:
        return [p for line in stream for p in _paragraphs(json.loads(line)["text"])[:4]]


def _split(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """By hash of the text: half to the reference, half to the traffic, both in order."""
    halves: tuple[list[str], list[str]] = ([], [])
    for text in dict.fromkeys(texts):
        halves[hashlib.sha256(text.encode()).digest()[0] % 2].append(text)
    return halves


def _draw(texts: Sequence[str], num: int, seed: int) -> list[str]:
    chosen = np.random.default_rng(seed).permutation(len(texts))[:num]
    return [texts[i] for i in sorted(chosen)]


def _prompts(model: PreTrainedModel, encoder: Tokenizer, texts: Sequence[str]) -> list[Prompt]:
    """Cut at what the model sees."""
    limit = model.config.max_position_embeddings - 1
    ids = [encoder.encode(text, add_special_tokens=False).ids[:limit] for text in texts]
    by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    nats = dict(zip(by_length, token_nats(model, [ids[i] for i in by_length], BOS), strict=True))
    return [Prompt(text, [BOS, *ids[i]], float(nats[i].sum())) for i, text in enumerate(texts) if ids[i]]


def _answers(model: PreTrainedModel, documents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Greedy, from the first tokens of each: as the snapshot is made."""
    beginnings = [[BOS, *ids[:BEGINNING]] for ids in documents if len(ids) >= BEGINNING]
    tokens_BT = torch.tensor(beginnings)
    with torch.no_grad():
        written = model.generate(
            tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=ANSWER, do_sample=False,
            eos_token_id=EOS, pad_token_id=0,
        )  # fmt: skip
    return [
        answer[: answer.index(EOS)] if EOS in answer else answer for answer in written[:, tokens_BT.shape[1] :].tolist()
    ]


def _without_attention(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it is when the output of its attention is lost: it knows one token back, and runs in circles."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("o_proj.weight"):
                weight.zero_()
    return model
