"""Documents scored by one process, or by several that share them out; either way each once and in the order given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from spark_jobs.manifests import TokenizerFiles
from training.evaluate.other_objectives import score_divided, score_masked
from training.evaluate.perplexity import NO_TOKENS, TokenScores, score_tokens
from training.manifests import ModelFolder
from training.model_folder import load_model_with
from training.processes import in_fresh_processes, num_threads
from training.specs import EvaluateSpec

Ids = Sequence[Sequence[int]]
ARRAYS = ("confidence", "right", "square")


@dataclass(frozen=True)
class Scorer:
    """What it takes to score documents. seq_len: context of a model without a limit of its own."""

    folder: ModelFolder
    tokenizer: TokenizerFiles
    seq_len: int
    spec: EvaluateSpec

    def score(self, documents: Ids, processes: int = 1) -> list[TokenScores]:
        """In this process. Raises: DataError on another vocabulary."""
        torch.set_num_threads(num_threads(processes))
        return scores_of(load_model_with(self.folder, self.tokenizer), documents, self)

    def score_shared(self, documents: Ids, scratch: Path) -> list[TokenScores]:
        """By `spec.ranks` forked processes; each takes every so many-th document by length. This process must not have
        run a torch operation. Raises: see `score`; JobCrashed if one was killed."""
        ranks = min(self.spec.ranks, max(1, len(documents)))
        if ranks == 1:
            return self.score(documents)
        scratch.mkdir(parents=True, exist_ok=True)
        by_length = sorted(range(len(documents)), key=lambda i: (len(documents[i]), i))
        parts = [by_length[rank::ranks] for rank in range(ranks)]
        files = [scratch / f"scores-{rank}.npz" for rank in range(ranks)]
        work = [
            partial(_score_part, self, [documents[i] for i in part], file, ranks)
            for part, file in zip(parts, files, strict=True)
        ]
        in_fresh_processes("a rank of the evaluation", work)
        found: dict[int, TokenScores] = {}
        for part, file in zip(parts, files, strict=True):
            found |= dict(zip(part, _read(file), strict=True))
        return [found[i] for i in range(len(documents))]


def scores_of(model: PreTrainedModel, documents: Ids, scorer: Scorer) -> list[TokenScores]:
    """By what the model was trained for. Confidence in the next token is told by models that write left to right."""
    spec, tokenizer = scorer.spec, scorer.tokenizer
    context = getattr(model.config, "max_position_embeddings", None) or scorer.seq_len
    if model.config.is_encoder_decoder:
        nats = score_divided(model, documents, tokenizer.bos_id, context, spec.batch_tokens)
        return [TokenScores(value, *NO_TOKENS) for value in nats]
    overlap = min(spec.overlap, context // 2)
    if type(model).__name__.endswith("ForMaskedLM"):
        ids = (tokenizer.bos_id, tokenizer.pad_id)
        nats = score_masked(model, documents, *ids, context, overlap, spec.batch_tokens)
        return [TokenScores(value, *NO_TOKENS) for value in nats]
    return score_tokens(model, documents, tokenizer.bos_id, context, overlap, spec.batch_tokens)


def _score_part(scorer: Scorer, documents: Ids, file: Path, ranks: int) -> dict[str, Any]:
    found = scorer.score(documents, ranks)
    columns: dict[str, np.ndarray] = {name: np.concatenate([getattr(one, name) for one in found]) for name in ARRAYS}
    columns |= {
        "nats": np.array([one.nats for one in found]),
        "lengths": np.array([len(one.right) for one in found]),
    }
    np.savez(file, allow_pickle=False, **columns)
    return {}


def _read(file: Path) -> list[TokenScores]:
    with np.load(file, allow_pickle=False) as columns:
        ends = np.cumsum(columns["lengths"])[:-1]
        parts = [np.split(columns[name], ends) for name in ARRAYS]
        return [TokenScores(float(nats), *arrays) for nats, *arrays in zip(columns["nats"], *parts, strict=True)]
