"""Real scores to simulate nights from: one trained model and two that came of it, on paragraphs of real texts.

stories260k (a trained Llama of 260,032 parameters) is the champion. `noisy`: a little Gaussian noise on every matrix, worse
everywhere. `taught`: trained on for some steps on one of the sources, as a night does, so it gains more here than there.
"""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from training.evaluate.documents import Document, cut_document, load_tokenizer
from training.evaluate.perplexity import score_documents

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
FOLDER = DATA / "models" / "stories260k"
SHORTEST, LONGEST = 80, 4000  # characters of a paragraph
MAX_TOKENS, CONTEXT, OVERLAP = 512, 256, 64
NOISE, TAUGHT_ON, STEPS, RATE = 0.03, "moby-dick", 20, 3e-5


@dataclass(frozen=True)
class Pool:
    """A population of documents, N: nats of the champion and of a candidate, bytes, and which source each is from."""

    name: str
    champion: np.ndarray
    candidate: np.ndarray
    size: np.ndarray
    source: np.ndarray


def paragraphs(limit: int, seed: int) -> list[Document]:
    """`limit` of each source, drawn by seed; the source is the file."""
    rng = np.random.default_rng(seed)
    found = []
    for name, texts in _sources():
        kept = [t for t in dict.fromkeys(texts) if SHORTEST <= len(t) <= LONGEST]
        for place in sorted(rng.permutation(len(kept))[:limit]):
            found.append(Document(f"{name}-{place:06d}", kept[place], name))
    return found


def _sources() -> Iterator[tuple[str, list[str]]]:
    for name in ("moby-dick", "tinyshakespeare", "wiki.valid"):
        yield name, [" ".join(p.split()) for p in _paragraphs((DATA / "text" / f"{name}.txt").read_text())]
    with gzip.open(DATA / "text" / "python_docs_rst.jsonl.gz", "rt") as lines:
        yield "python-docs", [" ".join(p.split()) for line in lines for p in _paragraphs(json.loads(line)["text"])]


def _paragraphs(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n\n") if "\n\n" in text else text.splitlines()


def pools(limit: int, seed: int) -> list[Pool]:
    torch.manual_seed(seed)
    encoder = load_tokenizer(FOLDER)
    champion: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    drawn = paragraphs(limit, seed)
    documents = [d for d in (cut_document(d, encoder, MAX_TOKENS) for d in drawn) if d.ids]
    ids = [d.ids for d in documents]
    size = np.array([d.num_bytes for d in documents], np.float64)
    source = np.array([d.document.source for d in documents])
    before = _nats(champion, ids)
    candidates = {"noisy": _noisy(champion), "taught": _taught(champion, encoder)}
    return [Pool(name, before, _nats(model, ids), size, source) for name, model in candidates.items()]


def _nats(model: Any, ids: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array(score_documents(model, ids, model.config.bos_token_id, CONTEXT, OVERLAP, 8192))


def _noisy(champion: Any) -> Any:
    model = copy.deepcopy(champion)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() == 2:
                weights += NOISE * weights.std() * torch.randn_like(weights)
    return model


def _taught(champion: Any, encoder: Tokenizer) -> Any:
    """On one source, as it stands: what a simulation needs is how gains spread over documents, not the gain."""
    model = copy.deepcopy(champion).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    text = (DATA / "text" / f"{TAUGHT_ON}.txt").read_text()
    ids = torch.tensor(encoder.encode(text[: 40 * STEPS * CONTEXT], add_special_tokens=False).ids)
    for step in range(STEPS):
        rows = torch.stack([ids[(8 * step + r) * CONTEXT :][:CONTEXT] for r in range(8)])
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
