import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.minhash import band_keys, normalised, shingle_sets

MASK = (1 << 64) - 1
GOLDEN_FIVE_WORDS = 2637778098288225037
GOLDEN_CHINESE = [741689097382416771, 10339801214021468218, 10884375807174140510]
GOLDEN_BANDS = [12823543553805510819, 14404012902082957319, 3080346645847417467]

GAMMA = 0x9E3779B97F4A7C15


def shingles_of(text: str, ngram: int = 5) -> set[int]:
    shingles, offsets = shingle_sets(pa.array([normalised(text)], pa.string()), ngram)
    assert offsets.tolist() == [0, len(shingles)]
    return {int(x) for x in shingles}


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def band_keys_in_python(shingles: set[int], bands: int, rows: int, seed: int) -> list[int]:
    """The definition in arithmetic without a word size, as an oracle."""
    keys = []
    for band in range(bands):
        key = band + 1
        for row in range(rows):
            salt = mix((seed + (band * rows + row + 1) * GAMMA) & MASK)
            key = mix(key ^ min(mix(x ^ salt) for x in shingles))
        keys.append(key)
    return keys


def test_shingles_of_known_texts_have_their_golden_hashes() -> None:
    assert shingles_of("one two three four five") == {GOLDEN_FIVE_WORDS}
    assert sorted(shingles_of("今天天气很好啊")) == GOLDEN_CHINESE


@pytest.mark.parametrize("shingles", [{1}, {2**63 + 1, 5, MASK}, set(range(100, 200))])
def test_band_keys_equal_unbounded_arithmetic(shingles: set[int]) -> None:
    array = np.array(sorted(shingles), np.uint64)
    keys = band_keys(array, np.array([0, len(array)]), bands=3, rows=4, seed=7)
    assert keys.shape == (1, 3)
    assert [int(k) for k in keys[0]] == band_keys_in_python(shingles, 3, 4, 7)


def test_band_keys_of_a_known_set_are_golden() -> None:
    keys = band_keys(np.array([1, 2**63 + 1], np.uint64), np.array([0, 2]), bands=14, rows=8, seed=1)
    assert [int(k) for k in keys[0, :3]] == GOLDEN_BANDS


def test_band_keys_change_with_the_seed() -> None:
    array, offsets = np.array([1, 2, 3], np.uint64), np.array([0, 3])
    assert (band_keys(array, offsets, 14, 8, 1) != band_keys(array, offsets, 14, 8, 2)).all()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Ab  Cd\n", "ab cd"),
        ("ﬁne ①", "fine 1"),
        ("STRASSE", "straße"),
        ("e\u0301", "\u00e9"),
    ],
)
def test_normalised_makes_the_same_text_of_variants(left: str, right: str) -> None:
    assert normalised(left) == normalised(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("हिन्दी विकिपीडिया", "हन्द वकपडय"),  # vowel signs are marks; stripping them would make these equal
        ("má ma mà mả mã", "ma ma ma ma ma"),
        ("ab c", "a bc"),
    ],
)
def test_different_words_stay_different(left: str, right: str) -> None:
    assert normalised(left) != normalised(right)
    assert shingles_of(left, 2).isdisjoint(shingles_of(right, 2))


def test_texts_shorter_than_a_shingle_have_none() -> None:
    for text in ("", "a b", "one two three four", "今天天", "!!! ??? ..."):
        assert shingles_of(text) == set()


def test_text_without_spaces_is_shingled_by_character() -> None:
    left, right = "今天天气很好，我们去公园散步吧", "今天天气很好，我们去公园跑步吧"
    shared = shingles_of(left) & shingles_of(right)
    assert 0 < len(shared) < len(shingles_of(left)) == len(left) - 1 - 4  # the comma is no part of a word


@given(st.lists(st.text(st.sampled_from("abc e\u0301ßह天. "), max_size=30), max_size=6))
@settings(deadline=None, max_examples=100)
def test_shingle_sets_are_sorted_distinct_and_independent_of_the_batch(texts: list[str]) -> None:
    normals = [normalised(text) for text in texts]
    shingles, offsets = shingle_sets(pa.array(normals, pa.string()), 2)
    for text, first, stop in zip(normals, offsets[:-1], offsets[1:], strict=True):
        own = [int(x) for x in shingles[first:stop]]
        assert own == sorted(set(own))
        assert set(own) == shingles_of(text, 2)
