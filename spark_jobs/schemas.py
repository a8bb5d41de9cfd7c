"""Names, Spark types and meaning of every column that the data jobs write.

A schema is a dict name -> Spark SQL type, in column order. `ddl` turns it into what Spark's readers take.
"""

from __future__ import annotations

Schema = dict[str, str]

DOCUMENTS: Schema = {
    "doc_id": "string",  # 32 hex digits: xxh3_128 of the UTF-8 text as ingested
    "text": "string",
    "source": "string",  # SourceSpec.name, or its kind
    # file relative to the source's path, and the place inside it, in bytes or rows: `a/b.jsonl.gz@1024`; of a web archive
    # also the address of the page: `a.warc.gz@1024 https://example.com/`
    "origin": "string",
    "priority": "int",  # SourceSpec.priority; of two copies the lower survives
    "language": "string",  # ISO 639 code, see language.py; empty where it was not asked for, and before cleaning
    "language_score": "double",  # its probability, 0 where language is empty
    "quality_score": "double",  # of clean.classifier, in [0, 1]; null where none was asked for, and before cleaning
}
NULLABLE = ("quality_score",)
DOCUMENT_ORDER = ("doc_id", "priority", "source", "origin")

REJECTS: Schema = {
    "doc_id": "string",  # empty when there was no text to hash
    "source": "string",
    "origin": "string",
    "step": "string",
    "reason": "string",
    "value": "double",  # what the rule measured; null for a reason that measures nothing
    "threshold": "double",  # what the spec allows
    "detail": "string",  # for a person; for a duplicate: the document that stays, and its night
    "rule_version": "string",
}
REJECT_ORDER = ("doc_id", "source", "origin", "reason", "detail")

SEEN: Schema = {
    "source": "string",
    "path": "string",  # relative to the source's path
    "size_bytes": "bigint",
    "digest": "string",  # xxh3_128 of the file's bytes, 32 hex digits
}

CLUSTERS: Schema = {
    "doc_id": "string",  # of the document that stays
    "night": "string",  # of the earlier night it is from; null for tonight
    "num_exact": "bigint",  # copies removed tonight
    "num_near": "bigint",
    "least_jaccard": "double",  # of the removed copies; 1 for exact ones
}

SEQUENCES: Schema = {
    "seq_id": "bigint",  # 0..n-1
    "tokens": "array<int>",
    "doc_lengths": "array<int>",  # sums to size(tokens)
    "doc_ids": "array<string>",  # as long as doc_lengths
}
HELDOUT: Schema = {"doc_id": "string", "text": "string", "source": "string", "language": "string"}


def ddl(schema: Schema) -> str:
    return ", ".join(f"`{name}` {kind}" for name, kind in schema.items())
