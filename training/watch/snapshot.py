"""The watch-reference job: corpus and champion -> the snapshot that live traffic is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from spark_jobs.errors import DataError
from spark_jobs.manifests import Corpus, TokenizerFiles
from spark_jobs.requests import Outcome, Request, send
from training.evaluate.documents import cut_document, heldout_documents, load_tokenizer
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model_with
from training.processes import num_threads
from training.watch.bins import buckets_of
from training.watch.corpus_counts import CorpusCounts, count_corpus
from training.watch.reference import ReferenceCounts, Texts, save
from training.watch.sketch import TrafficSketch
from training.watch.spec import ReferenceSpec

BATCH_TOKENS = 4096


def run(request: Request) -> Outcome:
    """Inputs: model, corpus, tokenizer. A model that does not write from left to right has neither perplexity nor answers.

    Raises: DataError on another vocabulary, or if the corpus has no document.
    """
    spec = ReferenceSpec.model_validate(request.spec)
    folder = ModelFolder.load(input_uri(request, "model"))
    corpus = Corpus.load(input_uri(request, "corpus"))
    files = TokenizerFiles.load(input_uri(request, "tokenizer"))
    torch.set_num_threads(num_threads())
    model = load_model_with(folder, files)
    special = (files.bos_id, files.eos_id, files.pad_id)
    counted = count_corpus(corpus, spec.documents, spec.seed, special)
    if not counted.drawn:
        raise DataError(f"corpus {corpus.address} has no document, nothing to compare traffic with: add documents")
    encoder = load_tokenizer(Path(files.folder()))
    sketch = TrafficSketch(folder.address)
    for document in counted.drawn:
        sketch.add(encoder.decode(document.tolist()), document.tolist(), (), None, "stop")
    texts = sketch.flush()
    nats: list[NDArray[np.float32]] = []
    if writes(model):
        held = heldout_ids(corpus, encoder, max(spec.heldout_documents, spec.answers), spec.max_tokens)
        nats = token_nats(model, held[: spec.heldout_documents], files.bos_id)
        add_answers(sketch, model, held[: spec.answers], files, spec)
    counts = counts_of(texts, sketch.flush(), counted, special)
    save(Path(request.out) / "data", counts, Texts(buckets=[buckets_of(d) for d in counted.drawn], nats=nats))
    answers = sum(counts.finish.values())
    fields = {
        "model": folder.address,
        "num_documents": counted.num_documents,
        "num_tokens": counted.num_tokens,
        "num_scored": len(nats),
        "num_answers": answers,
    }
    send("event", {"job": "watch-reference"} | fields)
    return Outcome(num_rows=len(counted.drawn), format="safetensors", fields=fields)


def counts_of(
    texts: dict[str, object], answers: dict[str, object], counted: CorpusCounts, special: Sequence[int]
) -> ReferenceCounts:
    """One table of the drawn documents' line, the answers' line and the counts over all sequences."""
    return ReferenceCounts.model_validate(
        {name: texts[name] for name in ("languages", "prompt_bytes")}
        | {name: answers[name] for name in ("finish", "answer_tokens", "repetition", "repetition_shares")}
        | {
            "prompt_tokens": counted.lengths.tolist(),
            "token_buckets": counted.buckets.tolist(),
            "num_documents": counted.num_documents,
            "num_tokens": counted.num_tokens,
            "special_buckets": sorted({int(b) for b in buckets_of(list(special))}),
        }
    )


def writes(model: PreTrainedModel) -> bool:
    """Whether it goes on from a text, token by token."""
    return bool(model.can_generate()) and not model.config.is_encoder_decoder


def heldout_ids(corpus: Corpus, encoder: Tokenizer, limit: int, max_tokens: int) -> list[list[int]]:
    """Token ids of held-out documents, lowest ids first, cut; [] where the corpus has none."""
    try:
        documents = heldout_documents(corpus, limit)
    except DataError:
        return []
    cut = (cut_document(document, encoder, max_tokens) for document in documents)
    return [list(scored.ids) for scored in cut if scored.ids]


def token_nats(model: PreTrainedModel, documents: Sequence[Sequence[int]], bos_id: int) -> list[NDArray[np.float32]]:
    """-log likelihood of every token after beginning-of-text, (T,) each; no more tokens than the model can look back on.

    A document with a number that is not finite is left out. Order is that of lengths: batches hold equal work.
    """
    limit = (getattr(model.config, "max_position_embeddings", None) or 2**30) - 1
    ordered = sorted((list(ids[:limit]) for ids in documents), key=len)
    found: list[NDArray[np.float32]] = []
    first = 0
    while first < len(ordered):
        num = max(1, BATCH_TOKENS // (len(ordered[min(first + 64, len(ordered)) - 1]) + 1))
        batch = ordered[first : first + num]
        tokens_BT = torch.zeros((len(batch), len(batch[-1]) + 1), dtype=torch.int64)
        tokens_BT[:, 0] = bos_id
        for row, ids in enumerate(batch):
            tokens_BT[row, 1 : len(ids) + 1] = torch.tensor(ids)
        with torch.no_grad():
            logits_BTV = model(input_ids=tokens_BT, use_cache=False).logits[:, :-1].float()
        losses_BT = F.cross_entropy(logits_BTV.transpose(1, 2), tokens_BT[:, 1:], reduction="none")
        found += [losses_BT[row, : len(ids)].numpy().astype(np.float32) for row, ids in enumerate(batch)]
        first += len(batch)
    return [nats for nats in found if np.isfinite(nats).all()]


def add_answers(
    sketch: TrafficSketch,
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    files: TokenizerFiles,
    spec: ReferenceSpec,
) -> None:
    """Count the model's greedy answers to beginnings of these documents; one shorter than a beginning is left out.

    Beginnings are equally long, so that no padding takes part.
    """
    beginnings = [ids[: spec.beginning_tokens] for ids in documents if len(ids) >= spec.beginning_tokens]
    limit = getattr(model.config, "max_position_embeddings", None) or 2**30
    length = min(spec.answer_tokens, limit - spec.beginning_tokens - 1)
    if not beginnings or length < 1:
        return
    tokens_BT = torch.tensor([[files.bos_id, *ids] for ids in beginnings])
    with torch.no_grad():
        written_BT = model.generate(
            tokens_BT, attention_mask=torch.ones_like(tokens_BT), max_new_tokens=length, do_sample=False,
            eos_token_id=files.eos_id, pad_token_id=files.pad_id,
        )[:, tokens_BT.shape[1] :]  # fmt: skip
    for ids, answer in zip(beginnings, written_BT.tolist(), strict=True):
        ended = files.eos_id in answer
        sketch.add(
            "", ids, answer[: answer.index(files.eos_id)] if ended else answer, None, "stop" if ended else "length"
        )
