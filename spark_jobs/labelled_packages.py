"""The zero-download labelled set: packages of this installation, their `Topic ::` classifiers, summaries and descriptions."""

from __future__ import annotations

from email.parser import HeaderParser

from spark_jobs import python_environment
from spark_jobs.label_spec import LabelSource, TaskKind
from spark_jobs.labelled_examples import Example
from spark_jobs.records import Record

TOPIC = "Topic :: "
UNKNOWN = "UNKNOWN"  # what setuptools wrote for nothing


def package_example(unit: str, source: LabelSource, task: TaskKind) -> Example | Record:
    """multi_label: the topics of summary and description. summarization: the summary of the description."""
    headers = HeaderParser().parsestr(python_environment.read_bytes(unit).decode("utf-8", "replace"))
    summary = " ".join((headers.get("Summary") or "").replace(UNKNOWN, "").split())
    text = python_environment.read_text(unit).replace("\r\n", "\n").strip().removeprefix(UNKNOWN)
    text = text.encode("utf-8", "replace").decode()  # bytes that were no UTF-8 stand in it as surrogates
    if task == "summarization":
        return Example(unit, {"text": text, "target": summary})
    topics = topics_of([str(name) for name in headers.get_all("Classifier") or []], source)
    if not topics:
        return Record(unit, None, "no_label", detail=f"no classifier {TOPIC}")
    return Example(unit, {"text": f"{summary}\n\n{text}".strip(), "labels": topics})


def topics_of(classifiers: list[str], source: LabelSource) -> list[str]:
    """`Topic :: A :: B` -> `A :: B`, cut to `topic_depth` parts, without repeats."""
    cut = [
        name.removeprefix(TOPIC).split(" :: ")[: source.topic_depth] for name in classifiers if name.startswith(TOPIC)
    ]
    names = [" :: ".join(part.strip() for part in parts) for parts in cut]
    return sorted({source.classes.get(name, name) for name in names})
