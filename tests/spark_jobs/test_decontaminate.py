import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from spark_jobs.errors import RequestError
from spark_jobs.evaluation_items import Features, Searcher, features_of, item_sizes, worst_item
from spark_jobs.evaluation_sets import Item, read_items
from spark_jobs.manifests import Documents
from spark_jobs.specs import DecontaminateSpec, EvaluationSet
from spark_jobs.words import words_of
from tests.spark_jobs.test_dedup import ingested, rejects
from tests.spark_jobs.workspace import Workspace, digest_of

EVAL = Path(__file__).parent.parent.parent.parent / "shared/data/eval"
SPEC = DecontaminateSpec()
HEADER = "Read the question and choose the one answer that fits it best among the four that are given below."
ITEMS = [
    Item("quiz/1", (f"{HEADER} Why do the tides of the sea at Saint Malo rise so much higher than those of the inner Baltic?",)),
    Item("quiz/2", ("What is 2+2?",)),
    Item("quiz/3", ("Who?",)),
    Item("quiz/4", ("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",)),
    *(Item(f"quiz/{n}", (f"{HEADER} Subject {n} of this quiz is about the history of town {n} and of its {n} old bridges over river {n}.",))
      for n in range(10, 22)),
]  # fmt: skip
PADDING = " ".join(f"word{n}" for n in range(200))


def hit(text: str, features: Features, common: set[int] = frozenset(), share: float = 0.5) -> str | None:  # type: ignore[assignment]
    is_common = np.zeros(len(features.hashes), bool)
    is_common[sorted(common)] = True
    found = Searcher(features).find(pa.array([text], pa.string()))[0]
    item, covered = worst_item(found, features, is_common, item_sizes(features, is_common))
    return features.names[item] if item >= 0 and covered >= share else None


@pytest.mark.parametrize(
    ("text", "item"),
    [
        (f"{PADDING} {ITEMS[0].texts[0]} {PADDING}", "quiz/1"),  # embedded in a long paragraph
        (f"{PADDING}: {ITEMS[0].texts[0].upper().replace(' ', '  ')}", "quiz/1"),
        (f"{HEADER} {PADDING}", None),  # a template that twelve items share
        (f"Well, what is 2 + 2? {PADDING}", "quiz/2"),  # a short item
        (f"What is 2? {PADDING}", None),
        (f"Who? {PADDING}", None),  # too short to be evidence
        (f"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 {PADDING}", None),  # no letter
        (PADDING, None),
        ("", None),
    ],
)
def test_documents_that_hold_an_item_are_told_from_those_that_hold_a_template(text: str, item: str | None) -> None:
    assert hit(text, features_of(ITEMS, SPEC)) == item


def test_threshold_decides() -> None:
    features = features_of(ITEMS, SPEC)
    half = " ".join(ITEMS[0].texts[0].split()[:34])
    assert hit(half, features, share=0.01) == "quiz/1"
    assert hit(half, features, share=1.0) is None


def test_a_text_that_much_of_the_corpus_quotes_is_no_evidence() -> None:
    features = features_of([Item("speech/1", (PADDING,))], SPEC)
    assert hit(PADDING, features) == "speech/1"
    assert hit(PADDING, features, common=set(range(len(features.hashes)))) is None


def test_no_feature_spans_two_fields_and_words_are_kept_apart() -> None:
    halves = Item("x/1", (" ".join(f"a{n}" for n in range(13)), " ".join(f"b{n}" for n in range(13))))
    assert len(features_of([halves], SPEC).hashes) == 2
    assert hit("ab c d e", features_of([Item("x/1", ("a bc d e",))], SPEC)) is None


def test_words_of_have_their_places_in_bytes() -> None:
    text = "Привет, мир! 今天 เก้า x1"
    hashes, starts, stops, letters = words_of(text)
    encoded = text.encode()
    cut = [encoded[first:stop].decode() for first, stop in zip(starts, stops, strict=True)]
    assert cut == ["Привет", "мир", "今", "天", "เ", "ก้", "า", "x1"]
    assert letters.all()
    assert len(set(hashes.tolist())) == 8


def test_read_items_names_the_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": 7, "q": "one", "n": 3, "c": {"text": ["two", "three"]}}\n\n[1]\n')
    items = read_items(EvaluationSet(name="quiz", path=str(path)))
    assert next(items) == Item("quiz/7", ("one", "two", "three"))
    with pytest.raises(RequestError, match=r"a\.jsonl, line 3: not a JSON object"):
        next(items)
    with pytest.raises(RequestError, match=r"no \.jsonl or \.txt file"):
        list(read_items(EvaluationSet(name="none", path=str(tmp_path / "missing"))))


@pytest.fixture
def quiz(tmp_path: Path) -> EvaluationSet:
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps({"id": item.name[5:], "q": item.texts[0]}) + "\n" for item in ITEMS))
    return EvaluationSet(name="quiz", path=str(path), fields=("q",))


def test_decontaminate_rejects_with_the_item_and_ignores_what_many_documents_hold(
    workspace: Workspace, quiz: EvaluationSet
) -> None:
    tide = ITEMS[0].texts[0]
    famous = [f"{ITEMS[12].texts[0]} quoted by paper {n}" for n in range(11)]
    documents = ingested(workspace, [f"{PADDING} {tide}", f"{HEADER} {PADDING}", "Oh, what is 2+2? Say it.", *famous])
    spec = DecontaminateSpec(sets=(quiz,))
    result = workspace.run(Documents, "decontaminate", spec, documents=documents)
    assert {origin: (row["detail"], row["value"], row["threshold"]) for origin, row in rejects(result).items()} == {
        "a@0": ("holds quiz/1", 1.0, 0.5),
        "a@2": ("holds quiz/2", 1.0, 0.5),
    }
    assert result.counts["items"] == len(ITEMS)
    assert result.counts["features_common"] > 0
    before = digest_of(result.uri)
    assert digest_of(workspace.run(Documents, "decontaminate", spec, documents=documents).uri) == before
    clean = ingested(workspace, [PADDING, HEADER], night="n2")
    assert workspace.run(Documents, "decontaminate", spec, "n2", documents=clean).counts["out"] == 2


@pytest.mark.skipif(not EVAL.is_dir(), reason="no ../shared/data/eval")
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("piqa/test.jsonl", ("goal", "sol1", "sol2")),
        ("arc_challenge.test.jsonl", ("question", "choices")),
        ("lambada_test.jsonl", ("text",)),
    ],
)
def test_real_items_planted_in_documents_are_found_and_named(path: str, fields: tuple[str, ...]) -> None:
    chosen = EvaluationSet(name="real", path=str(EVAL / path), fields=fields)
    items = list(read_items(chosen))
    features = features_of(items, SPEC)
    sizes = item_sizes(features, np.zeros(len(features.hashes), bool))
    planted = [number for number in range(0, len(items), 25) if sizes[number]]
    assert len(planted) > len(items) / 50
    texts = [f"{PADDING}\n{' '.join(items[number].texts)}\n{PADDING}" for number in planted]
    for number, found in zip(planted, Searcher(features).find(pa.array(texts, pa.string())), strict=True):
        item, share = worst_item(found, features, np.zeros(len(features.hashes), bool), sizes)
        assert share == 1.0
        assert item <= number  # the first of those found whole
