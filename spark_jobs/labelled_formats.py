"""Labelled examples of formats with a form of their own: lines of a class, CoNLL, SQuAD, SemEval's relations, dialogues."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from spark_jobs.byte_streams import decompressed, lines, whole
from spark_jobs.label_spec import LabelSource, TaskKind
from spark_jobs.labelled_examples import BadField, Example, as_spans
from spark_jobs.read_lines import encoding_of_lines, text_lines
from spark_jobs.readers import Unit
from spark_jobs.records import Record, Refused
from spark_jobs.specs import SourceSpec

ARGUMENT = re.compile(r"</?e[12]>")
NUMBERED = re.compile(r'^(\d+)\t"?(.*?)"?\s*$')
DIRECTION = re.compile(r"\(e[12],e[12]\)$")
MAX_FILE_BYTES = 1 << 30  # of a file of JSON or YAML, which is read whole


def line_examples(
    origin: str, file: Path, unit: Unit, source: LabelSource, max_bytes: int
) -> Iterator[Example | Record]:
    """A line, without white space at its ends, is a text; the file tells its class."""
    label = source.classes[unit.path]
    as_lines = SourceSpec(kind="lines", path=str(file), encoding=source.encoding)
    for record in text_lines(origin, file, unit.first, unit.stop, as_lines, max_bytes):
        if record.text is None:
            yield record
        else:
            yield Example(record.origin, {"text": record.text.strip(), "labels": [label]})


def conll_examples(origin: str, file: Path, source: LabelSource, max_bytes: int) -> Iterator[Example | Record]:
    """A line a word, its columns between tabs or spaces; an empty line ends a sentence; -DOCSTART- lines say nothing.

    A line that lacks a column, or cannot be decoded, makes a reject of its sentence.
    """
    tokens: list[str] = []
    tags: list[str] = []
    begin, bad = 0, ""
    for offset, line in _decoded_lines(file, source.encoding, max_bytes):
        if line is not None and not line.strip():
            if tokens or bad:
                yield _sentence(f"{origin}@{begin}", tokens, tags, bad)
            tokens, tags, bad = [], [], ""
            continue
        if not tokens and not bad:
            begin = offset
        columns = line.split("\t") if line and "\t" in line else (line or "").split()
        if columns and columns[0] == "-DOCSTART-":
            continue
        try:
            word, tag = columns[source.word_column].strip(), columns[source.tag_column].strip()
        except IndexError:
            found = "no text in the file's encoding" if line is None else f"{len(columns)} columns"
            bad = bad or f"the line at byte {offset} has {found}"
        else:
            tokens.append(word)
            tags.append(tag)
    if tokens or bad:
        yield _sentence(f"{origin}@{begin}", tokens, tags, bad)


def _sentence(place: str, tokens: list[str], tags: list[str], bad: str) -> Example | Record:
    if bad:
        return Record(place, None, "bad_conll", detail=bad)
    return Example(place, {"tokens": tokens, "tags": tags})


def _decoded_lines(file: Path, declared: str, max_bytes: int) -> Iterator[tuple[int, str | None]]:
    """(byte of the start, line), None for one that is too long or not in the encoding. Raises: Refused."""
    encoding = encoding_of_lines(file, declared)
    for offset, line in lines(decompressed(file), 0, 1 << 62, 4 * max_bytes):
        try:
            yield offset, None if line is None else line.decode(encoding).removeprefix("\ufeff").rstrip("\r")
        except UnicodeDecodeError:
            yield offset, None


def relation_examples(origin: str, file: Path, source: LabelSource, max_bytes: int) -> Iterator[Example | Record]:
    """SemEval-2010 task 8: a numbered sentence in quotes, its relation in the next line, a comment, an empty line.

    Where there is no relation it is looked up in `key_file`. The marks are taken out; spans e1 and e2 say where they were.
    """
    keys = relation_keys(source.key_file) if source.key_file else {}
    held: tuple[str, str, str] | None = None  # (place, number, marked sentence) whose relation has not come yet
    for offset, line in _decoded_lines(file, source.encoding, max_bytes):
        place = f"{origin}@{offset}"
        if line is None:
            yield Record(place, None, "bad_encoding", detail="the line is too long or not in the file's encoding")
            continue
        numbered = NUMBERED.match(line)
        if held and (numbered or not line.strip()):
            yield _relation(*held, keys.get(held[1]), source)
            held = None
        if numbered:
            held = (place, numbered[1], numbered[2])
        elif held:
            yield _relation(*held, line.strip(), source)
            held = None
    if held:
        yield _relation(*held, keys.get(held[1]), source)


def _relation(place: str, number: str, marked: str, label: str | None, source: LabelSource) -> Example | Record:
    if not label:
        return Record(place, None, "no_label", detail=f"sentence {number} has no relation, and no key")
    if not source.directed:
        label = DIRECTION.sub("", label)
    marks = [(found.group(), found.start()) for found in ARGUMENT.finditer(marked)]
    places: dict[str, int] = {}
    removed = 0
    for mark, at in marks:
        places[mark] = at - removed
        removed += len(mark)
    if len(places) != len(marks) or set(places) != {"<e1>", "</e1>", "<e2>", "</e2>"}:
        return Record(
            place, None, "bad_spans", float(len(marks)), 4.0, f"sentence {number}: wanted <e1> and <e2> once each"
        )
    spans = [{"start": places[f"<{arg}>"], "end": places[f"</{arg}>"], "label": arg} for arg in ("e1", "e2")]
    labels = [source.classes.get(label, label)]
    return Example(place, {"text": ARGUMENT.sub("", marked), "labels": labels, "spans": spans})


@cache
def relation_keys(path: str) -> dict[str, str]:
    """Number of a sentence -> relation. Raises: Refused for a line of another form."""
    found: dict[str, str] = {}
    for line in Path(path).read_text("utf-8", "replace").splitlines():
        number, tab, label = line.partition("\t")
        if line.strip():
            if not tab:
                raise Refused(
                    "bad_key_file", f"key_file {path!r}: line {line[:60]!r} is no `id<tab>relation`; mend the file"
                )
            found[number.strip()] = label.strip()
    return found


def squad_examples(origin: str, file: Path, source: LabelSource, task: TaskKind) -> Iterator[Example | Record]:
    """SQuAD's JSON, versions 1.1 and 2.0. Raises: Refused if the file is not of this form."""
    other = _parallel_texts(source.translations) if task == "translation" else {}
    seen: set[str] = set()
    for context, questions in _paragraphs(file):
        group = hashlib.md5(context.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        for question in questions:
            number = str(question.get("id", ""))
            place = f"{origin}#{number}"
            if task == "translation":
                yield from _pairs(place, context, question, other.get(number), group, source, seen)
            else:
                yield _answered(place, context, question, group)


def _answered(place: str, context: str, question: dict[str, Any], group: str) -> Example | Record:
    try:
        spans = [] if question.get("is_impossible") else as_spans(question.get("answers"))
    except BadField as err:
        return Record(place, None, "bad_field", detail=f"answers: {err}"[:200])
    fields = {"text": question.get("question"), "pair": context, "spans": spans, "group": group}
    if not isinstance(fields["text"], str):
        return Record(place, None, "bad_field", detail="question: no text")
    return Example(place, fields | {"target": spans[0]["label"] if spans else None})


def _pairs(
    place: str, context: str, question: dict[str, Any], other: tuple[str, str] | None, group: str, source: LabelSource,
    seen: set[str],
) -> Iterator[Example | Record]:  # fmt: skip
    """The question with its translation; and with the first question of a paragraph, the context with its own."""
    if other is None:
        yield Record(place, None, "no_translation", detail=f"not in {Path(source.translations).name}")
        return
    if source.translate != "contexts":
        yield Example(place, {"text": question.get("question"), "target": other[0], "group": group})
    if source.translate != "questions" and group not in seen:
        seen.add(group)
        yield Example(f"{place}/context", {"text": context, "target": other[1], "group": group})


def _paragraphs(file: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    try:
        articles = json.loads(_text_of(file))["data"]
        found = [(part["context"], part["qas"]) for article in articles for part in article["paragraphs"]]
        if not all(isinstance(context, str) and isinstance(questions, list) for context, questions in found):
            raise TypeError("context is no text, or qas no list")
    except (KeyError, TypeError, ValueError, RecursionError) as err:
        raise Refused(
            "bad_squad", f"not of the form data[].paragraphs[].qas[]: {type(err).__name__}: {err}"[:200]
        ) from err
    yield from found


@cache
def _parallel_texts(path: str) -> dict[str, tuple[str, str]]:
    """Id of a question -> (question, context) in the other language."""
    return {
        str(question.get("id", "")): (str(question.get("question", "")), context)
        for context, questions in _paragraphs(Path(path))
        for question in questions
    }


def dialogue_examples(origin: str, file: Path) -> Iterator[Example | Record]:
    """ChatterBot's YAML: conversations, each a list of turns of user and assistant in turn.

    A last turn without an answer is left off. The opening is the group. Raises: Refused if the file is not of this form.
    """
    try:
        parsed = yaml.load(_text_of(file), Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader))
        conversations = parsed["conversations"]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as err:
        raise Refused("bad_dialogues", f"no YAML with `conversations`: {type(err).__name__}: {err}"[:200]) from err
    if not isinstance(conversations, list):
        raise Refused("bad_dialogues", f"`conversations` is {type(conversations).__name__}; wanted a list of lists")
    for number, turns in enumerate(conversations):
        yield _dialogue(f"{origin}#{number}", turns)


def _dialogue(place: str, turns: Any) -> Example | Record:
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        return Record(
            place, None, "bad_messages", detail="a turn is no text (YAML takes `a: b` for a mapping); quote it"
        )
    if len(turns) < 2:
        return Record(place, None, "bad_messages", float(len(turns)), 2.0, "a dialogue needs an answer")
    answered = turns[: len(turns) // 2 * 2]
    messages = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(answered)]
    return Example(place, {"messages": messages, "group": " ".join(turns[0].casefold().split())})


def _text_of(file: Path) -> str:
    """Raises: Refused; OSError."""
    data = whole(file, MAX_FILE_BYTES)
    if len(data) > MAX_FILE_BYTES:
        raise Refused(
            "too_long", f"more than {MAX_FILE_BYTES} bytes, which are read at once; cut it into several files"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise Refused("not_utf8", f"byte {err.start} of the file") from err
