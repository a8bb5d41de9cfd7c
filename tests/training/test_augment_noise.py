"""Character noise and word noise: how much, where not, and the same again for the same seed."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.augment.change_words import change_rows, changed_tokens
from training.augment.draws import Draws
from training.augment.made import Made, NotMade
from training.augment.noise import NEIGHBOURS, character_change, character_noise, noisy_word, word_change
from training.augment_spec import CharacterNoiseSpec, WordNoiseSpec
from training.evaluate.character_noise import noisy_rows

EMPTY: dict[str, Any] = dict.fromkeys(
    ("text", "pair", "labels", "value", "tokens", "tags", "spans", "target", "messages", "chosen", "rejected", "group")
)
WORDS = ["the", "mill", "grinds", "by", "night", "while", "everybody", "sleeps", "Soundly", "x"]


def row(number: int = 0, **columns: Any) -> dict[str, Any]:
    return EMPTY | {"id": f"{number:032x}", "split": "train", "source": "t", "made_by": "", "made_from": ""} | columns


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) + " ." for _ in range(count)]


def bio(tags: list[str]) -> list[tuple[str, list[int]]]:
    """Names as strict BIO reads them: type and places. An I- that continues nothing is an error."""
    names: list[tuple[str, list[int]]] = []
    for place, tag in enumerate(tags):
        if tag.startswith("B-"):
            names.append((tag[2:], [place]))
        elif tag.startswith("I-"):
            assert names, tags
            kind, places = names[-1]
            assert (kind, places[-1]) == (tag[2:], place - 1), tags
            places.append(place)
    return names


def test_character_noise_same_seed_and_id_same_text() -> None:
    text = sentences(1)[0] * 5
    assert character_noise(text, 0.3, 1, "a") == character_noise(text, 0.3, 1, "a")
    others = {character_noise(text, 0.3, seed, name) for seed in (1, 2) for name in ("a", "b")}
    assert len(others) == 4


def test_character_noise_is_these_very_slips() -> None:
    """Written down, so that noisy test sets of two releases are the same."""
    text = "A quiet mill grinds slowly, but every night."
    assert character_noise(text, 0.2, 3, "00ff") == "A quiiet mill rginss slowwly, but every night."


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_character_noise_share_of_letters_is_kept_on_average(share: float) -> None:
    """Slips counted by what they leave: a doubled letter or a neighbour adds one, a deletion takes one, and a swap leaves
    the length; letters are all different, so each slip can be told."""
    word, letters, slips = "abcdefghij", 0, 0
    for number in range(3000):
        noisy = noisy_word(word, share, Draws("share", share, number))
        kept = [letter for letter in noisy if letter in word]
        deleted = len(set(word) - set(noisy))
        added = len(noisy) - (len(word) - deleted)
        swapped = sum(kept.index(a) > kept.index(b) for a, b in itertools.pairwise(word) if {a, b} <= set(kept))
        slips += deleted + added + swapped
        letters += len(word)
    # A swap uses up its second letter, and a neighbour's key may look like another slip: within a tenth and some chance.
    assert abs(slips / letters - share) < 0.12 * share + 3 * (share / letters) ** 0.5


@given(st.text(min_size=1, max_size=30).filter(lambda t: any(map(str.isalpha, t))), st.integers(0, 99))
def test_noisy_word_keeps_a_letter_and_everything_that_is_none(word: str, seed: int) -> None:
    noisy = noisy_word(word, 1.0, Draws(seed))
    assert any(map(str.isalpha, noisy))
    assert [c for c in noisy if not c.isalpha()] == [c for c in word if not c.isalpha()]


def test_noisy_word_does_not_tear_marks_from_letters() -> None:
    """Devanagari `ki`, `te`: a consonant and its vowel sign; a letter and a combining accent."""
    for word in ("किते", "e\u0301a\u0300"):
        assert {noisy_word(word, 1.0, Draws(seed)) for seed in range(20)} == {word}


def test_neighbours_are_mutual_letters() -> None:
    assert set(NEIGHBOURS) == set("abcdefghijklmnopqrstuvwxyz")
    assert all(key in NEIGHBOURS[other] for key, others in NEIGHBOURS.items() for other in others)


def test_character_noise_protected_words_stay() -> None:
    text = "Nightmill grinds corn in Basel every night"
    spans = [(0, 9), (25, 30)]
    for seed in range(50):
        noisy = character_noise(text, 1.0, seed, "x", spans)
        assert noisy.startswith("Nightmill ")
        assert " Basel " in noisy


@pytest.mark.parametrize(("delete", "swap"), [(0.1, 0.0), (0.4, 0.0)])
def test_word_noise_share_of_words_left_out_is_kept_on_average(delete: float, swap: float) -> None:
    change, words = word_change(delete, swap), [str(i) for i in range(20)]
    gone = sum(change(words, [True] * 20, Draws(seed)).count(None) for seed in range(2000))
    assert abs(gone / 40_000 - delete) < 0.01


def test_word_noise_share_of_swaps_is_kept_on_average() -> None:
    """A swap moves two words: at a small share, twice as many words are in another place."""
    change, words = word_change(0.0, 0.02), [str(i) for i in range(50)]
    moved = sum(a != b for s in range(2000) for a, b in zip(words, change(words, [True] * 50, Draws(s)), strict=True))
    assert abs(moved / 100_000 - 0.04) < 0.003


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.booleans()), max_size=12), st.integers(0, 999))
def test_word_noise_only_free_words_move_and_one_stays(words: list[tuple[str, bool]], seed: int) -> None:
    given_words, free = [w for w, _ in words], [f for _, f in words]
    new = word_change(0.9, 0.9)(given_words, free, Draws(seed))
    assert all(new[i] == word for i, word in enumerate(given_words) if not free[i])
    kept = [word for i, word in enumerate(new) if free[i] and word is not None]
    assert len(kept) >= min(1, sum(free))
    assert not set(kept) - {word for i, word in enumerate(given_words) if free[i]}


@st.composite
def tagged(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Valid BIO, also names that follow each other at once."""
    tokens, tags = [], []
    for kind in draw(st.lists(st.sampled_from(["O", "PER", "LOC"]), min_size=1, max_size=12)):
        length = 1 if kind == "O" else draw(st.integers(1, 3))
        for place in range(length):
            tokens.append(f"{draw(st.sampled_from(WORDS))}{len(tokens)}")
            tags.append("O" if kind == "O" else f"{'I' if place else 'B'}-{kind}")
    return tokens, tags


@given(tagged(), st.integers(0, 99), st.sampled_from(["words", "characters"]))
def test_noise_on_tags_names_are_the_same_words_and_bio_stays_valid(
    example: tuple[list[str], list[str]], seed: int, what: str
) -> None:
    tokens, tags = example
    change = word_change(0.5, 0.5) if what == "words" else character_change(0.5)
    text = " ".join(tokens)
    changes = changed_tokens(row(tokens=tokens, tags=tags, text=text), change, Draws(seed))
    assert changes is not None
    new_tokens, new_tags = changes["tokens"], changes["tags"]
    assert len(new_tokens) == len(new_tags)
    before = [(kind, [tokens[i] for i in places]) for kind, places in bio(tags)]
    assert [(kind, [new_tokens[i] for i in places]) for kind, places in bio(new_tags)] == before
    assert changes["text"].split() == new_tokens


def test_noise_on_tags_text_without_its_tokens_is_not_made() -> None:
    example = row(tokens=["a", "mill"], tags=["O", "O"], text="another text", labels=None)
    assert list(change_rows(iter([example]), "tagging", CharacterNoiseSpec(), 0, character_change(1.0))) == [
        NotMade("tokens_not_in_text")
    ]


def test_noise_on_questions_answers_are_the_same_text() -> None:
    context = "Basel has a mill. The mill of Basel grinds by night."
    spans = [{"start": 0, "end": 5, "label": "Basel"}, {"start": 30, "end": 35, "label": "Basel"}]
    rows = [row(i, text="Where is the mill?", pair=context, spans=spans) for i in range(40)]
    made = list(
        change_rows(iter(rows), "question_answering", CharacterNoiseSpec(strength=0.5), 0, character_change(0.5))
    )
    assert len({r.row["pair"] for r in made if isinstance(r, Made)}) > 30
    for result in made:
        assert isinstance(result, Made)
        assert [result.row["pair"][s["start"] : s["end"]] for s in result.row["spans"]] == ["Basel", "Basel"]
        assert [s["label"] for s in result.row["spans"]] == ["Basel", "Basel"]


def test_noise_on_relations_both_arguments_are_the_same_text() -> None:
    text = "The big mill was built by the old miller in spring."
    spans = [{"start": 8, "end": 12, "label": "e1"}, {"start": 34, "end": 40, "label": "e2"}]
    rows = [row(i, text=text, spans=spans, labels=["Product-Producer(e1,e2)"]) for i in range(60)]
    spec = WordNoiseSpec(delete=0.4, swap=0.4)
    for result in change_rows(iter(rows), "relation", spec, 0, word_change(0.4, 0.4)):
        assert isinstance(result, Made)
        assert [result.row["text"][s["start"] : s["end"]] for s in result.row["spans"]] == ["mill", "miller"]


def test_noise_on_dialogues_only_users_mistype() -> None:
    messages = [
        {"role": "system", "content": "You grind corn."},
        {"role": "user", "content": "How much do you grind?"},
        {"role": "assistant", "content": "Very much indeed."},
    ]
    [result] = change_rows(
        iter([row(messages=messages)]), "dialogue", CharacterNoiseSpec(strength=0.9), 0, character_change(0.9)
    )
    assert isinstance(result, Made)
    before, asked, answered = result.row["messages"]
    assert (before, answered) == (messages[0], messages[2])
    assert asked["role"] == "user"
    assert asked["content"] != messages[1]["content"]


def test_noise_on_candidates_of_a_query_the_query_is_the_same_in_a_group_of_its_own() -> None:
    rows = [
        row(i, text=f"query number {i % 2} about mills", pair=f"item {i}", value=float(i), group=f"q{i % 2}")
        for i in range(6)
    ]
    spec = CharacterNoiseSpec(strength=0.4, copies=2)
    made = [r.row for r in change_rows(iter(rows), "ranking", spec, 0, character_change(0.4)) if isinstance(r, Made)]
    groups: dict[str, set[str]] = {}
    for r in made:
        groups.setdefault(r["group"], set()).add(r["text"])
        assert r["pair"] in {f"item {i}" for i in range(6)}
    assert set(groups) == {f"q{q}/character_noise/{copy}" for q in (0, 1) for copy in (0, 1)}
    assert all(len(texts) == 1 for texts in groups.values())


def test_change_rows_other_order_of_rows_gives_the_same_rows() -> None:
    rows = [row(i, text=text, labels=["a"]) for i, text in enumerate(sentences(200))]
    spec = WordNoiseSpec(share=0.5, copies=2)

    def made(order: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        results = change_rows(iter(order), "classification", spec, 5, word_change(spec.delete, spec.swap))
        return {r.row["id"]: r.row for r in results if isinstance(r, Made)}

    shuffled = random.Random(1).sample(rows, len(rows))
    assert made(rows) == made(shuffled)
    assert 150 < len(made(rows)) < 210


def test_change_rows_share_of_rows_is_kept_on_average_and_grows_by_adding_rows() -> None:
    rows = [row(i, text=text, labels=["a"]) for i, text in enumerate(sentences(2000))]
    chosen = {}
    for share in (0.1, 0.3):
        spec = CharacterNoiseSpec(share=share, strength=0.9)
        results = list(change_rows(iter(rows), "classification", spec, 0, character_change(0.9)))
        chosen[share] = {r.row["made_from"] for r in results if isinstance(r, Made)}
        assert abs(len(results) / 2000 - share) < 0.03
    assert chosen[0.1] < chosen[0.3]


def test_change_rows_only_rows_of_the_named_classes() -> None:
    rows = [row(i, text=text, labels=["rare" if i % 10 == 0 else "common"]) for i, text in enumerate(sentences(100))]
    spec = CharacterNoiseSpec(strength=0.5, only_labels=("rare",), copies=3)
    made = list(change_rows(iter(rows), "classification", spec, 0, character_change(0.5)))
    assert len(made) == 30
    assert all(isinstance(r, Made) and r.row["labels"] == ["rare"] for r in made)


def test_noisy_rows_keep_id_label_and_answers_and_do_not_depend_on_each_other() -> None:
    rows = [row(i, text=text, labels=["a"], group=None) for i, text in enumerate(sentences(30))]
    noisy = list(noisy_rows(rows, "classification", 0.1, 4))
    assert [r["id"] for r in noisy] == [r["id"] for r in rows]
    assert all(r["made_by"] == "" and r["labels"] == ["a"] for r in noisy)
    assert sum(a["text"] != b["text"] for a, b in zip(rows, noisy, strict=True)) > 20
    assert list(noisy_rows(rows[7:8], "classification", 0.1, 4)) == noisy[7:8]
    assert noisy[7]["text"] == character_noise(rows[7]["text"], 0.1, 4, rows[7]["id"])
