"""Rows of benchmarks/finetune.py that no reader gives as they are: made from real texts, written as JSONL.

What is real and what is ours is said with each.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
Row = dict[str, Any]
PIECES = 12  # of a speech
MARKED = re.compile(r"<(/?)(e[12])>")


def write_rows(rows: Iterator[Row], path: Path) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def nominals() -> Iterator[Row]:
    """Words of SemEval-2010 task 8 and BIO tags of the two nominals that its annotators marked in each sentence."""
    folder = DATA / "labelled" / "semeval2010_task8"
    for split, file in (
        ("train", folder / "SemEval2010_task8_training" / "TRAIN_FILE.TXT"),
        ("test", folder / "SemEval2010_task8_testing_keys" / "TEST_FILE_FULL.TXT"),
    ):
        for line in file.read_text("utf-8", errors="replace").splitlines():
            number, tab, sentence = line.partition("\t")
            if not tab or not number.strip().isdigit():
                continue
            tokens, tags = _tagged(sentence.strip().strip('"'))
            yield {"tokens": tokens, "tags": tags, "split": split}


def _tagged(sentence: str) -> tuple[list[str], list[str]]:
    tokens: list[str] = []
    tags: list[str] = []
    inside = fresh = False
    for piece in re.split(r"(</?e[12]>)", sentence):
        if MARKED.fullmatch(piece):
            inside = fresh = not piece.startswith("</")
            continue
        for word in re.findall(r"\w+|[^\w\s]", piece):
            tokens.append(word)
            tags.append(("B-NOMINAL" if fresh else "I-NOMINAL") if inside else "O")
            fresh = False
    return tokens, tags


def speeches() -> Iterator[Row]:
    """Pieces of the State of the Union speeches; to be told: the year, in centuries from 1900."""
    for file in sorted((DATA / "text" / "sotu").glob("*.txt")):
        year = re.search(r"(1[789]\d\d|20\d\d)", file.name)
        if year is None:
            continue
        pieces = _pieces(file.read_text("utf-8", errors="replace"), 400)
        for piece in pieces[:: max(1, len(pieces) // PIECES)][:PIECES]:
            yield {"text": piece, "value": (int(year[1]) - 1900) / 100, "group": file.name}


def _pieces(text: str, size: int) -> list[str]:
    """Whole sentences, until they are `size` characters or more."""
    pieces = [""]
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        pieces[-1] += sentence + " "
        if len(pieces[-1]) >= size:
            pieces.append("")
    return [piece.strip() for piece in pieces if len(piece) >= size]


def _paragraphs() -> list[tuple[str, str, list[str]]]:
    """Title of the article, paragraph, questions; XQuAD, English."""
    told = json.loads((DATA / "labelled" / "xquad.en.json").read_text())["data"]
    return [
        (str(article.get("title", number)), part["context"], [q["question"] for q in part["qas"]])
        for number, article in enumerate(told)
        for part in article["paragraphs"]
    ]


def related() -> Iterator[Row]:
    """Question and paragraph of XQuAD: 1 if it was asked of it, 0.5 if of another one of the article, else 0. The questions
    are real, the three grades are ours."""
    draws, parts = random.Random(0), _paragraphs()
    for title, context, questions in parts:
        beside = [c for t, c, _ in parts if t == title and c != context]
        apart = [c for t, c, _ in parts if t != title]
        for question in questions:
            for value, choices in ((1.0, [context]), (0.5, beside), (0.0, apart)):
                if choices:
                    yield {"text": question, "pair": draws.choice(choices), "value": value, "group": title}


def candidates(count: int = 4) -> Iterator[Row]:
    """For each question of XQuAD its paragraph and others, those of the same article first."""
    draws, parts = random.Random(0), _paragraphs()
    for title, context, questions in parts:
        beside = [c for t, c, _ in parts if t == title and c != context]
        apart = draws.sample([c for t, c, _ in parts if t != title], count)
        for question in questions:
            for text in [context, *(beside + apart)[: count - 1]]:
                yield {"text": question, "pair": text, "value": float(text == context), "group": question}


def answers() -> Iterator[Row]:
    """Of ChatterBot's English dialogues: the answer that was given, and its words in another order. (Another question's
    answer would not do: it was mostly the better one of a training row, so a model that learns by heart prefers it.)"""
    draws = random.Random(0)
    for file in sorted((DATA / "labelled" / "chatterbot_corpus" / "english").glob("*.yml")):
        for turns in yaml.safe_load(file.read_text())["conversations"]:
            if len(turns) < 2 or not all(isinstance(turn, str) for turn in turns[:2]):
                continue
            words = turns[1].split()
            mixed = draws.sample(words, len(words))
            if len(words) >= 4 and mixed != words:
                yield {"text": turns[0], "chosen": turns[1], "rejected": " ".join(mixed), "group": turns[0]}


MADE: dict[str, Callable[[], Iterator[Row]]] = {
    "nominals": nominals, "speeches": speeches, "related": related, "candidates": candidates, "answers": answers,
}  # fmt: skip
