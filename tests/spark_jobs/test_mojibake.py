import pyarrow as pa
import pytest

from spark_jobs.mojibake import repair


def repaired(text: str) -> str:
    return repair(pa.array([text], pa.string()))[0].as_py()


@pytest.mark.parametrize(
    "text", ["schön, naïve", "Всеобщая декларация прав человека", "Příliš žluťoučký kůň", "l’été — “oui”"]
)
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252", "cp1251"])
def test_text_read_in_the_wrong_encoding_is_mended(text: str, wrong: str) -> None:
    try:
        broken = text.encode().decode(wrong)
    except UnicodeDecodeError:
        pytest.skip(f"{wrong} leaves some of these bytes out")
    if wrong == "cp1251" and "В" not in text:
        pytest.skip("told apart from real text only where it is Cyrillic")
    assert repaired(broken) == text


@pytest.mark.parametrize(
    "text",
    ["plain", "schön", "Всеобщая декларация", "C’est déjà l’été", "100 °C ± 2 µm", "ÃO É", "हिन्दी", "今天很好。", "Ă„"],
)
def test_good_text_stays_as_it_is(text: str) -> None:
    assert repaired(text) == text
