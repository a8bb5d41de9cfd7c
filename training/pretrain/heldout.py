"""Held-out documents as packed sequences, to watch a loss that training cannot learn by heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from spark_jobs.errors import RequestError
from spark_jobs.manifests import Corpus, TokenizerFiles
from training.evaluate.documents import last_heldout_documents, load_tokenizer
from training.pretrain.mesh import Mesh
from training.pretrain.token_shards import Batch, make_batch

DOCUMENTS_A_SEQUENCE = 8  # read at most, so that a large held-out part is never in memory
Row = tuple[np.ndarray, np.ndarray]  # tokens and document lengths, int32


def heldout_rows(corpus: Corpus, tokenizer: TokenizerFiles, num_sequences: int) -> list[Row]:
    """Up to `num_sequences` sequences of the held-out documents with the highest ids, in order of id.

    The gate scores those with the lowest: what stops a training should not also judge it.
    Raises: RequestError if the corpus has no held-out document.
    """
    documents = last_heldout_documents(corpus, DOCUMENTS_A_SEQUENCE * num_sequences)
    if not documents:
        raise RequestError(
            "train.early_stop.watch heldout: the corpus has none; set tokenize.heldout_share or watch train"
        )
    encoder = load_tokenizer(Path(tokenizer.folder()))
    rows: list[tuple[list[int], list[int]]] = [([], [])]
    for document in documents:
        inner = encoder.encode(document.text, add_special_tokens=False).ids
        ids = [tokenizer.bos_id, *inner, tokenizer.eos_id][: corpus.seq_len]
        if len(rows[-1][0]) + len(ids) > corpus.seq_len:
            if len(rows) == num_sequences:
                break
            rows.append(([], []))
        rows[-1][0].extend(ids)
        rows[-1][1].append(len(ids))
    return [(np.array(tokens, np.int32), np.array(lengths, np.int32)) for tokens, lengths in rows]


def heldout_batches(rows: list[Row], mesh: Mesh, micro_batch: int, pad_id: int, seq_len: int) -> list[Batch]:
    """This rank's share of the rows; all ranks have as many batches, some with rows of padding, which count nothing."""
    share = -(-len(rows) // mesh.degrees.batch)
    empty = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    own = rows[mesh.at.batch * share : (mesh.at.batch + 1) * share]
    own += [empty] * (share - len(own))
    return [make_batch(own[i : i + micro_batch], seq_len, pad_id) for i in range(0, share, micro_batch)]
