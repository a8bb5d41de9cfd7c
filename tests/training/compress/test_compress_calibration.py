"""Calibration texts: what is drawn, and what an evaluation set keeps out."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from spark_jobs.errors import DataError, RequestError
from spark_jobs.requests import Request
from training.compress.calibrate import run
from training.compress.calibration import draw, draw_documents, load, overlapping
from training.compress_spec import CalibrationSpec
from training.manifests import Calibration

WORDS = ["oak", "elm", "ash", "fir", "yew", "box", "bay", "fig", "nut", "pea", "rye", "oat"]


def random_texts(count: int, seed: int, num_words: int = 40) -> list[str]:
    """Words in no order, so that two texts share long runs of tokens by copying only."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"{rng.choice(WORDS)}{rng.integers(1000)}" for _ in range(num_words)) for _ in range(count)]


@pytest.fixture(scope="module")
def grove(make, tmp_path_factory):
    """One night of 80 texts, a tenth held out, sequences of 64 tokens."""
    return make.world(tmp_path_factory.mktemp("grove"), [random_texts(80, 3)], 400, 64)


def spec(**fields: object) -> CalibrationSpec:
    return CalibrationSpec.model_validate({"num_sequences": 20, "sequence_length": 32, "seed": 5} | fields)


def test_draw_is_documents_of_the_corpus_cut_and_without_padding(grove) -> None:
    drawn = draw(grove.corpus, grove.tokenizer, spec())
    assert len(drawn.sequences) == 20
    assert all(2 <= len(s) <= 32 for s in drawn.sequences)
    starts = sum(s[0] == grove.tokenizer.bos_id for s in drawn.sequences)
    assert 0 < starts < 20, "some are later pieces of long documents"
    encoder = Tokenizer.from_file(str(Path(grove.tokenizer.folder()) / "tokenizer.json"))
    everything = "".join(" ".join(random_texts(80, 3)).split())
    for sequence in drawn.sequences:
        assert not (sequence == grove.tokenizer.pad_id).any()
        assert not (sequence[1:] == grove.tokenizer.bos_id).any(), "two documents side by side"
        assert "".join(encoder.decode(sequence.tolist()).split()) in everything


def test_draw_follows_its_seed_alone(grove) -> None:
    one, again, other = (draw(grove.corpus, grove.tokenizer, spec(seed=n)).sequences for n in (5, 5, 6))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_draw_from_a_small_corpus_takes_each_sequence_once(grove) -> None:
    found = draw_documents(grove.corpus, 10_000, 64, 0)
    assert len(found) == grove.corpus.nights[0].num_sequences


def test_overlap_begins_at_the_number_of_tokens_asked_for() -> None:
    drawn = [np.arange(20, dtype=np.int32), np.arange(100, 120, dtype=np.int32)]
    evaluated = [[7, *range(4, 9), 7], [5], [], list(range(110, 116))]
    assert overlapping(drawn, evaluated, 6) == {1}
    assert overlapping(drawn, evaluated, 5) == {0, 1}
    assert overlapping(drawn, evaluated, 7) == set()


def test_a_copied_evaluation_document_is_left_out_and_counted(make, tmp_path) -> None:
    """Four of about seventy training texts are held-out ones with two words before them."""
    texts = random_texts(80, 4)
    held = [t for t in texts if _is_held(t)]
    world = make.world(tmp_path, [[*texts, *_copies(held, 4)]], 400, 64)
    drawn = draw(world.corpus, world.tokenizer, spec(num_sequences=200, max_overlap=0.2))
    assert 0 < drawn.num_overlapping <= 0.2 * drawn.num_drawn
    assert len(drawn.sequences) == drawn.num_drawn - drawn.num_overlapping
    encoder = Tokenizer.from_file(str(Path(world.tokenizer.folder()) / "tokenizer.json"))
    assert not overlapping(drawn.sequences, [encoder.encode(t).ids for t in held], 13)


def test_calibration_on_the_evaluation_set_is_refused(make, tmp_path) -> None:
    texts = random_texts(80, 4)
    held = [t for t in texts if _is_held(t)]
    world = make.world(tmp_path, [[*texts, *_copies(held, len(held))]], 400, 64)
    with pytest.raises(
        RequestError, match=r"sequences share 13 consecutive tokens with a held-out document, at most 1%"
    ):
        draw(world.corpus, world.tokenizer, spec(num_sequences=200, max_overlap=0.01))
    clean = draw(world.corpus, world.tokenizer, spec(num_sequences=200, max_overlap=0.01, overlap_tokens=64))
    assert clean.num_overlapping == 0, "cut to 32 tokens, none can share 64"


def _is_held(text: str) -> bool:
    """As the fixture's shards decide it."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < 0.1


def _copies(held: list[str], wanted: int) -> list[str]:
    """Each held-out text behind some number that makes the whole a training text."""
    found = []
    for text in held[:wanted]:
        found.append(next(c for c in (f"copy {n} {text}" for n in range(1000)) if not _is_held(c)))
    return found


def test_calibrate_publishes_what_was_drawn(make, grove) -> None:
    out = grove.root / "calibrations" / "calibrate-0001"
    out.mkdir(parents=True)
    request = Request(
        job="calibrate", spec=spec().model_dump(), inputs=grove.inputs(), out=str(out), night="2026-01-01"
    )
    handle = make.publish_outcome(Calibration, out, "2026-01-01", run(request))
    drawn = draw(grove.corpus, grove.tokenizer, spec())
    loaded = load(handle)
    assert [t.tolist() for t in loaded] == [s.tolist() for s in drawn.sequences]
    assert handle.num_rows == handle.num_sequences == 20
    assert handle.num_tokens == sum(len(s) for s in loaded)
    assert handle.corpus == grove.corpus.address


def test_calibrate_with_another_tokenizer_is_refused(make, grove, tmp_path) -> None:
    other = make.tokenizer(tmp_path, ["a b"], 300)
    inputs = grove.inputs() | {"tokenizer": other.uri}
    request = Request(job="calibrate", spec={}, inputs=inputs, out=str(tmp_path / "c"), night="2026-01-01")
    with pytest.raises(DataError, match="give the tokenizer that made its shards"):
        run(request)
