"""One change of words applied to whatever a row has words in: a text, two texts, tagged tokens, a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from training.augment.allowed import Row, changed_columns, key_of, protected
from training.augment.draws import Draws, chosen
from training.augment.edits import NewWords, Range, is_free, rewritten, word_ranges
from training.augment.made import NotMade, Result, made_row, wanted
from training.augment_spec import CharacterNoiseSpec, SynonymsSpec, WordNoiseSpec

# (words, which of them may be changed, draws) -> the new words
Change = Callable[[Sequence[str], Sequence[bool], Draws], NewWords]


def change_rows(
    rows: Iterator[Row], task: str, spec: SynonymsSpec | CharacterNoiseSpec | WordNoiseSpec, seed: int, change: Change
) -> Iterator[Result]:
    """Each chosen row `spec.copies` times, in the order of the rows."""
    columns = changed_columns(task, spec.kind)
    for row in rows:
        key = key_of(row, task)
        if wanted(row, spec) and chosen(spec.share, seed, spec.kind, key):
            for copy in range(spec.copies):
                yield _changed_row(row, task, spec.kind, columns, copy, change, Draws(seed, spec.kind, key, copy))


def _changed_row(
    row: Row, task: str, kind: str, columns: tuple[str, ...], copy: int, change: Change, draws: Draws
) -> Result:
    changes: dict[str, Any] = {}
    for column in columns:
        if row[column] is None:
            continue
        if column == "messages":
            changes["messages"] = changed_messages(row["messages"], change, draws)
        elif column == "tokens":
            tagged = changed_tokens(row, change, draws)
            if tagged is None:
                return NotMade("tokens_not_in_text")
            changes |= tagged
        else:
            spans = protected(row, task, column)
            text, places = changed_text(row[column], spans, change, draws)
            changes[column] = text
            if spans:
                changes["spans"] = [
                    {**span, "start": start, "end": end}
                    for span, (start, end) in zip(row["spans"], places, strict=True)
                ]
    return made_row(row, task, kind, copy, changes)


def changed_text(text: str, spans: Sequence[Range], change: Change, draws: Draws) -> tuple[str, list[Range]]:
    """The text with its words changed, and the places of the spans in it; words that touch a span stay."""
    words = word_ranges(text)
    new = change([text[a:b] for a, b in words], [is_free(word, spans) for word in words], draws)
    return rewritten(text, words, new, spans)


def changed_messages(messages: Sequence[dict[str, Any]], change: Change, draws: Draws) -> list[dict[str, Any]]:
    """What users say is changed; what the model is to learn, and what it is told to be, is not."""
    return [
        {**message, "content": changed_text(message["content"], [], change, draws)[0]}
        if message["role"] == "user"
        else message
        for message in messages
    ]


def changed_tokens(row: Row, change: Change, draws: Draws) -> dict[str, Any] | None:
    """New tokens, tags and, where the row has one, text. None if the text does not hold the tokens in order.

    Only words with tag O are changed. One that stands before an I- tag is left alone: without it, two names could touch.
    """
    tokens, tags = row["tokens"], row["tags"]
    following = [*tags[1:], "O"]
    free = [
        tag == "O" and not after.startswith("I") and token.strip() != ""
        for token, tag, after in zip(tokens, tags, following, strict=True)
    ]
    new = change(tokens, free, draws)
    kept = [(word, tag) for word, tag in zip(new, tags, strict=True) if word is not None]
    changes: dict[str, Any] = {"tokens": [word for word, _ in kept], "tags": [tag for _, tag in kept]}
    if row["text"] is not None:
        places = _places(row["text"], tokens)
        if places is None:
            return None
        changes["text"] = rewritten(row["text"], places, new, [])[0]
    return changes


def _places(text: str, tokens: Sequence[str]) -> list[Range] | None:
    places, at = [], 0
    for token in tokens:
        start = text.find(token, at)
        if start < 0:
            return None
        at = start + len(token)
        places.append((start, at))
    return places
