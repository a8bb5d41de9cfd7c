"""The data steps of a night: each function names its step, its inputs and the code behind it, and runs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spark_jobs.errors import QualityError
from spark_jobs.manifests import CheckReport, Corpus, Documents, Handle, NightData, Parent, TokenizerFiles, TokenShards
from spark_jobs.requests import Outcome
from spark_jobs.specs import CheckSpec, CleanSpec, DedupSpec, IngestSpec, SnapshotSpec, TokenizerSpec, TokenizeSpec
from tasks.engine import current_engine
from tasks.steps import Step

SPARK = ("pyspark", "pyarrow", "numpy", "numba")


def ingest_documents(spec: IngestSpec, history: Corpus | None) -> Documents:
    """Raw files not seen on earlier nights -> documents."""
    engine = current_engine()
    return engine.run(
        Step(
            name="ingest", handle=Documents, entry="spark_jobs.ingest", spec=spec, night=engine.night, dated=True,
            inputs=_with_history({}, history), libraries=SPARK, app="spark",
        )
    )  # fmt: skip


def clean_documents(raw: Documents, spec: CleanSpec) -> Documents:
    """Documents -> normalised documents that pass the quality rules."""
    engine = current_engine()
    return engine.run(
        Step(
            name="clean", handle=Documents, entry="spark_jobs.clean", spec=spec, night=engine.night,
            inputs={"documents": raw}, libraries=SPARK, app="spark",
        )
    )  # fmt: skip


def dedup_documents(cleaned: Documents, spec: DedupSpec, history: Corpus | None) -> Documents:
    """Documents -> those without a copy among themselves or on an earlier night."""
    engine = current_engine()
    return engine.run(
        Step(
            name="dedup", handle=Documents, entry="spark_jobs.dedup", spec=spec, night=engine.night,
            inputs=_with_history({"documents": cleaned}, history), libraries=SPARK, app="spark",
        )
    )  # fmt: skip


def check_dataset(dataset: Documents | TokenShards, spec: CheckSpec) -> CheckReport:
    """Great Expectations over a dataset. Raises: QualityError naming what failed; nothing behind it runs."""
    engine = current_engine()
    name = "check-documents" if isinstance(dataset, Documents) else "check-tokens"
    report = engine.run(
        Step(
            name=name, handle=CheckReport, entry="spark_jobs.expectations", spec=spec, night=engine.night,
            inputs={"dataset": dataset}, libraries=("pyspark", "great-expectations"), app="spark",
        )
    )  # fmt: skip
    if not report.success:
        raise QualityError(
            f"{name}: {dataset.address} failed {', '.join(report.failed)}; see {report.folder('data_docs')}/index.html, "
            "then mend the input or the bounds in `check`"
        )
    return report


def make_tokenizer(documents: Documents, check: CheckReport, spec: TokenizerSpec) -> TokenizerFiles:
    """Documents -> a tokenizer trained on them (or the imported one)."""
    engine = current_engine()
    return engine.run(
        Step(
            name="tokenizer", handle=TokenizerFiles, entry="spark_jobs.tokenizer", spec=spec, night=engine.night,
            inputs={"documents": documents, "check": check}, libraries=("tokenizers",), app="spark",
        )
    )  # fmt: skip


def tokenize_documents(
    documents: Documents, tokenizer: TokenizerFiles, check: CheckReport, spec: TokenizeSpec
) -> TokenShards:
    """Checked documents -> packed sequences, and the held-out documents beside them."""
    engine = current_engine()
    return engine.run(
        Step(
            name="tokenize", handle=TokenShards, entry="spark_jobs.tokenization", spec=spec, night=engine.night,
            inputs={"documents": documents, "tokenizer": tokenizer, "check": check},
            libraries=(*SPARK, "tokenizers"), app="spark",
        )
    )  # fmt: skip


def snapshot_corpus(
    ingested: Documents,
    unique: Documents,
    tokens: TokenShards,
    tokenizer: TokenizerFiles,
    check: CheckReport,
    history: Corpus | None,
    spec: SnapshotSpec,
) -> Corpus:
    """Tonight's outputs added to those of all earlier nights. Only addresses: nothing is copied."""
    engine = current_engine()
    inputs: dict[str, Handle] = {
        "ingested": ingested, "unique": unique, "tokens": tokens, "tokenizer": tokenizer, "check": check,
    }  # fmt: skip
    step = Step(
        name="corpus", handle=Corpus, entry="spark_jobs.manifests", spec=spec, night=engine.night, dated=True,
        inputs=_with_history(inputs, history), work=partial(_snapshot, ingested, unique, tokens, tokenizer, history, engine.night),
    )  # fmt: skip
    return engine.run(step)


def _snapshot(
    ingested: Documents,
    unique: Documents,
    tokens: TokenShards,
    tokenizer: TokenizerFiles,
    history: Corpus | None,
    night: str,
    attempt: Path,
) -> Outcome:
    tonight = NightData(
        night=night,
        ingested=parent_of("ingested", ingested),
        unique=parent_of("unique", unique),
        tokens=parent_of("tokens", tokens),
        num_sequences=tokens.num_rows,
        num_tokens=tokens.num_tokens,
        num_heldout=tokens.num_heldout,
    )
    nights = (*(history.nights if history else ()), tonight)
    return Outcome(
        num_rows=sum(n.num_sequences for n in nights),
        format="addresses",
        fields={
            "nights": nights,
            "tokenizer": parent_of("tokenizer", tokenizer),
            "seq_len": tokens.seq_len,
            "vocab_size": tokens.vocab_size,
        },
    )


def parent_of(role: str, handle: Handle) -> Parent:
    return Parent(role=role, address=handle.address, digest=handle.digest)


def _with_history(inputs: dict[str, Handle], history: Corpus | None) -> dict[str, Handle]:
    return inputs if history is None else inputs | {"history": history}
