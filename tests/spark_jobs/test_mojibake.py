import pyarrow as pa
import pytest

from spark_jobs.mojibake import repair


def repaired(text: str) -> str:
    return repair(pa.array([text], pa.string()))[0].as_py()


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("schön, naïve", "latin-1"),
        ("schön, naïve", "cp1252"),
        ("Příliš žluťoučký kůň", "latin-1"),
        ("l’été — “oui”", "latin-1"),
        ("Всеобщая декларация прав человека", "latin-1"),
        ("Всеобщая декларация прав человека", "cp1251"),
    ],
)
def test_text_read_in_the_wrong_encoding_is_mended(text: str, wrong: str) -> None:
    assert repaired(text.encode().decode(wrong)) == text


@pytest.mark.parametrize(
    "text",
    ["plain", "schön", "Всеобщая декларация", "C’est déjà l’été", "100 °C ± 2 µm", "ÃO É", "हिन्दी", "今天很好。", "Ă„"],
)
def test_good_text_stays_as_it_is(text: str) -> None:
    assert repaired(text) == text
