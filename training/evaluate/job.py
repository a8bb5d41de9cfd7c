"""The evaluate job: one model on the held-out documents of a corpus, with a row a document and a gzip baseline."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from spark_jobs.errors import DataError
from spark_jobs.manifests import Column, Corpus, TokenizerFiles
from spark_jobs.requests import Outcome, Request, send
from training.augment.noise import character_noise
from training.evaluate.documents import Scored, cut_document, gzip_bits_per_byte, heldout_documents, load_tokenizer
from training.evaluate.intervals import scored
from training.evaluate.perplexity import TokenScores, bits_per_byte, perplexity
from training.evaluate.scoring import Scorer
from training.evaluate.slices import slices_of
from training.inputs import input_uri
from training.manifests import ModelFolder
from training.specs import EvaluateSpec

SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int64(), nullable=False),
        pa.field("nats", pa.float64(), nullable=False),
    ]
)
COLUMNS = (
    Column(name="doc_id", type="string"),
    Column(name="source", type="string"),
    Column(name="language", type="string"),
    Column(name="num_bytes", type="bigint"),
    Column(name="num_tokens", type="bigint"),
    Column(name="nats", type="double"),
)


@dataclass(frozen=True)
class Told:
    """A document and what the model made of it. noisy: nats and bytes of the same text with slips, where asked for."""

    scored: Scored
    tokens: TokenScores
    noisy: tuple[float, int] | None = None

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.tokens.nats) and (self.noisy is None or math.isfinite(self.noisy[0]))


def run(request: Request) -> Outcome:
    """Inputs: model (of any scheme), corpus, tokenizer. A document whose nats are not finite is invalid: counted, not used.

    Raises: DataError on another vocabulary, or if no document could be scored.
    """
    spec = EvaluateSpec.model_validate(request.spec)
    folder = ModelFolder.load(input_uri(request, "model"))
    corpus = Corpus.load(input_uri(request, "corpus"))
    tokenizer = TokenizerFiles.load(input_uri(request, "tokenizer"))
    encoder = load_tokenizer(Path(tokenizer.folder()))
    documents = [
        cut_document(d, encoder, spec.max_document_tokens) for d in heldout_documents(corpus, spec.max_documents)
    ]
    told = _told(Scorer(folder, tokenizer, corpus.seq_len, spec), [d for d in documents if d.ids], encoder, request)
    valid = [one for one in told if one.is_finite]
    if not valid:
        raise DataError(f"model {folder.address} scored none of {len(told)} documents with a finite number")
    fields = _fields(folder, valid, len(told) - len(valid))
    data = Path(request.out) / "data"
    data.mkdir(parents=True, exist_ok=True)
    table = _table(valid)
    pq.write_table(table, data / "documents.parquet")
    scores = _scores(valid, table, len(told) - len(valid), spec)
    (data / "scores.json").write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")
    send("event", {"job": "evaluate"} | fields)
    return Outcome(num_rows=len(valid), format="parquet", columns=COLUMNS, fields=fields)


def _told(scorer: Scorer, documents: Sequence[Scored], encoder: Tokenizer, request: Request) -> list[Told]:
    """Texts as they are and disturbed, in one pass over the model."""
    spec, ids = scorer.spec, [d.ids for d in documents]
    noisy = [
        character_noise(d.text, spec.noise_share, spec.seed, d.document.doc_id) for d in documents if spec.noise_share
    ]
    noisy_ids = [encoding.ids for encoding in encoder.encode_batch(noisy, add_special_tokens=False)]
    found = scorer.score_shared([*ids, *noisy_ids], Path(request.out) / "scratch")
    if not spec.noise_share:
        return [Told(d, tokens) for d, tokens in zip(documents, found, strict=True)]
    half = len(documents)
    sizes = [(tokens.nats, len(text.encode())) for tokens, text in zip(found[half:], noisy, strict=True)]
    return [Told(*one) for one in zip(documents, found[:half], sizes, strict=True)]


def _fields(folder: ModelFolder, valid: Sequence[Told], num_invalid: int) -> dict[str, object]:
    nats = math.fsum(one.tokens.nats for one in valid)
    num_tokens, num_bytes = sum(len(one.scored.ids) for one in valid), sum(one.scored.num_bytes for one in valid)
    return {
        "model": folder.address,
        "bits_per_byte": bits_per_byte(nats, num_bytes),
        "perplexity": perplexity(nats, num_tokens),
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
        "num_invalid": num_invalid,
        "gzip_bits_per_byte": gzip_bits_per_byte([one.scored.text for one in valid]),
    }


def _table(valid: Sequence[Told]) -> pa.Table:
    rows = [
        {
            "doc_id": one.scored.document.doc_id,
            "source": one.scored.document.source,
            "language": one.scored.document.language,
            "num_bytes": one.scored.num_bytes,
            "num_tokens": len(one.scored.ids),
            "nats": one.tokens.nats,
        }
        for one in valid
    ]
    return pa.Table.from_pylist(rows, SCHEMA)


def _scores(valid: Sequence[Told], table: pa.Table, num_invalid: int, spec: EvaluateSpec) -> dict[str, object]:
    columns = {name: table.column(name).to_pylist() for name in ("nats", "num_bytes", "num_tokens")}
    noisy = [one.noisy for one in valid if one.noisy is not None]
    if noisy:
        columns |= {"noisy_nats": [nats for nats, _ in noisy], "noisy_bytes": [size for _, size in noisy]}
    place = {doc_id: i for i, doc_id in enumerate(table.column("doc_id").to_pylist())}
    slices = {name: [place[doc_id] for doc_id in sorted(members)] for name, members in slices_of(table).items()}
    return scored(columns, [one.tokens for one in valid], slices, num_invalid, spec)
