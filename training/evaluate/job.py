"""The evaluate job: one model on the held-out documents of a corpus, with a row a document and a gzip baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel

from spark_jobs.errors import DataError
from spark_jobs.manifests import Column, Corpus, TokenizerFiles
from spark_jobs.requests import Outcome, Request, send
from training.evaluate.documents import Scored, cut_document, gzip_bits_per_byte, heldout_documents, load_tokenizer
from training.evaluate.other_objectives import score_divided, score_masked
from training.evaluate.perplexity import bits_per_byte, perplexity, score_documents
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.model_folder import load_model
from training.processes import num_threads
from training.specs import EvaluateSpec

SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("nats", pa.float64(), nullable=False),
    ]
)
COLUMNS = (
    Column(name="doc_id", type="string"),
    Column(name="source", type="string"),
    Column(name="num_bytes", type="bigint"),
    Column(name="num_tokens", type="bigint"),
    Column(name="nats", type="double"),
)


def run(request: Request) -> Outcome:
    """Inputs: model (of any scheme), corpus, tokenizer. A document whose nats are not finite is invalid: counted, not used.

    Raises: DataError on another vocabulary, or if no document could be scored.
    """
    spec = EvaluateSpec.model_validate(request.spec)
    folder = ModelFolder.load(input_uri(request, "model"))
    corpus = Corpus.load(input_uri(request, "corpus"))
    tokenizer = TokenizerFiles.load(input_uri(request, "tokenizer"))
    torch.set_num_threads(num_threads())
    model = load_model(folder)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise DataError(
            f"model {folder.address} has {model.config.vocab_size} token ids, tokenizer {tokenizer.address} "
            f"{tokenizer.vocab_size}: evaluate it with the tokenizer it was trained with"
        )
    encoder = load_tokenizer(Path(tokenizer.folder()))
    documents = [
        cut_document(d, encoder, spec.max_document_tokens) for d in heldout_documents(corpus, spec.max_documents)
    ]
    documents = [d for d in documents if d.ids]
    nats = nats_of(model, [d.ids for d in documents], tokenizer, corpus.seq_len, spec)
    valid = [(d, n) for d, n in zip(documents, nats, strict=True) if math.isfinite(n)]
    if not valid:
        raise DataError(f"model {folder.address} scored none of {len(documents)} documents with a finite number")
    fields = _fields(folder, valid, len(documents) - len(valid))
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write_table(valid, data / "documents.parquet")
    send("event", {"job": "evaluate"} | fields)
    return Outcome(num_rows=len(valid), format="parquet", columns=COLUMNS, fields=fields)


def nats_of(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    tokenizer: TokenizerFiles,
    seq_len: int,
    spec: EvaluateSpec,
) -> list[float]:
    """Nats of each document, by what the model was trained for; seq_len where it has no limit of its own."""
    context = getattr(model.config, "max_position_embeddings", None) or seq_len
    if model.config.is_encoder_decoder:
        return score_divided(model, documents, tokenizer.bos_id, context, spec.batch_tokens)
    overlap = min(spec.overlap, context // 2)
    if type(model).__name__.endswith("ForMaskedLM"):
        return score_masked(model, documents, tokenizer.bos_id, tokenizer.pad_id, context, overlap, spec.batch_tokens)
    return score_documents(model, documents, tokenizer.bos_id, context, overlap, spec.batch_tokens)


def _fields(folder: ModelFolder, valid: list[tuple[Scored, float]], num_invalid: int) -> dict[str, object]:
    nats = math.fsum(n for _, n in valid)
    num_tokens, num_bytes = sum(len(d.ids) for d, _ in valid), sum(d.num_bytes for d, _ in valid)
    return {
        "model": folder.address,
        "bits_per_byte": bits_per_byte(nats, num_bytes),
        "perplexity": perplexity(nats, num_tokens),
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "num_invalid": num_invalid,
        "gzip_bits_per_byte": gzip_bits_per_byte([d.text for d, _ in valid]),
    }


def _write_table(valid: list[tuple[Scored, float]], path: Path) -> None:
    rows = [
        {
            "doc_id": d.document.doc_id,
            "source": d.document.source,
            "num_bytes": d.num_bytes,
            "num_tokens": len(d.ids),
            "nats": n,
        }
        for d, n in valid
    ]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
