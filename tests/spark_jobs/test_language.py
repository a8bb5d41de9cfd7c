from pathlib import Path

import pyarrow as pa
import pytest

from spark_jobs.clean import label_batch
from spark_jobs.language import identify
from spark_jobs.schemas import DOCUMENTS
from spark_jobs.specs import CleanSpec
from spark_jobs.text_encoding import decode

UDHR = Path(__file__).parents[3] / "shared/data/text/udhr_encodings"

TEXTS = {
    "en": "All human beings are born free and equal in dignity and rights.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах.",
    "hi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
    "zh": "人人生而自由，在尊严和权利上一律平等。",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}


def test_language_is_named_with_its_probability_without_any_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # any attempt to fetch something would fail
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    codes, scores = identify(pa.array(list(TEXTS.values()), pa.string()))
    assert codes == list(TEXTS)
    assert ((scores > 0.6) & (scores <= 1)).all()


def test_language_of_a_long_text_looks_beyond_its_header() -> None:
    codes, _ = identify(pa.array(["12345 " * 40 + "\n" + TEXTS["de"] * 40], pa.string()))
    assert codes == ["de"]


@pytest.mark.parametrize("text", ["", " \n ", "\n\n\n"])
def test_language_of_nothing_is_empty(text: str) -> None:
    codes, scores = identify(pa.array([text], pa.string()))
    assert (codes, scores.tolist()) == ([""], [0.0])


def test_declarations_in_every_script_pass_the_rules_and_have_their_language() -> None:
    if not UDHR.is_dir():
        pytest.skip(f"no test data at {UDHR}")
    wanted = {
        "Chinese_Mandarin-GB2312": "zh", "Chinese_Mandarin-UTF8": "zh", "Japanese_Nihongo-SJIS": "ja", "Lao-UTF8": "lo",
        "Burmese_Myanmar-UTF8": "my", "Korean_Hankuko-UTF8": "ko", "Hindi-UTF8": "hi", "Tamil-UTF8": "ta",
        "Arabic_Alarabia-Arabic": "ar", "Hebrew_Ivrit-Hebrew": "he", "Greek_Ellinika-Greek": "el", "Russian-Cyrillic": "ru",
        "Turkish_Turkce-Turkish": "tr", "Polish-Latin2": "pl", "English-Latin1": "en",
    }  # fmt: skip
    rows = [
        dict.fromkeys(DOCUMENTS, "")
        | {"text": decode((UDHR / name).read_bytes())[0], "origin": name, "priority": 1, "language_score": 0.0}
        for name in wanted
        if (UDHR / name).is_file()
    ]
    labelled = label_batch(pa.RecordBatch.from_pylist(rows), CleanSpec()).to_pylist()
    assert len(labelled) >= 14
    assert {row["origin"]: row["reason"] for row in labelled if row["reason"]} == {}
    assert {row["origin"]: row["language"] for row in labelled} == {
        row["origin"]: wanted[row["origin"]] for row in labelled
    }
