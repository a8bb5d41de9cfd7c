import pyarrow as pa
import pytest

from spark_jobs.language import identify

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
