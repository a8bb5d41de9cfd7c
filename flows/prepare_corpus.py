"""Raw files -> a checked corpus snapshot. Deployment `prepare-corpus`, pool `cpu`."""

from __future__ import annotations

from prefect import flow

from flows.night import FlowReport, open_night
from flows.specs import NightlySpec
from tasks.data_steps import (
    check_dataset,
    clean_documents,
    decontaminate_documents,
    dedup_documents,
    ingest_documents,
    list_forgotten,
    make_classifier,
    make_tokenizer,
    snapshot_corpus,
    tokenize_documents,
)


@flow(name="prepare-corpus")
def prepare_corpus(spec: NightlySpec, night: str = "") -> FlowReport:
    """Read what is new, clean it, remove copies and evaluation items, check, tokenize, check, and add it to the corpus.

    Args:
        spec: What to do; one section a step.
        night: Logical night as YYYY-MM-DD. Empty: tonight (UTC), or the scheduled start.
    """
    with open_night(spec, night) as tonight:
        history = tonight.history()
        raw = ingest_documents(spec.ingest, history)
        if tonight.nothing_new(raw, history):
            return tonight.report()
        cleaned = clean_documents(raw, spec.clean, make_classifier(spec.clean))
        unique = dedup_documents(cleaned, spec.dedup, history, list_forgotten(history))
        documents = decontaminate_documents(unique, spec.decontaminate)
        documents_check = check_dataset(documents, spec.check)
        tokenizer = tonight.kept_tokenizer(history) or make_tokenizer(documents, documents_check, spec.tokenizer)
        tokens = tokenize_documents(documents, tokenizer, documents_check, spec.tokenize)
        tokens_check = check_dataset(tokens, spec.check)
        snapshot_corpus(raw, unique, tokens, tokenizer, tokens_check, history, spec.snapshot)
        return tonight.report()
