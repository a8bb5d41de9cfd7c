import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.int_columns import to_binary
from spark_jobs.packing import best_fit, cut
from spark_jobs.tokenization import pack_table, unpacked


def best_fit_by_search(lengths: list[int], seq_len: int) -> list[int]:
    """The definition, word for word."""
    spaces: list[int] = []
    chosen = [0] * len(lengths)
    touched: list[int] = []
    for piece in sorted(range(len(lengths)), key=lambda p: -lengths[p]):
        fitting = [s for s in range(len(spaces)) if spaces[s] >= lengths[piece]]
        if fitting:
            least = min(spaces[s] for s in fitting)
            sequence = min((s for s in fitting if spaces[s] == least), key=lambda s: touched[s])
        else:
            sequence = len(spaces)
            spaces.append(seq_len)
            touched.append(0)
        spaces[sequence] -= lengths[piece]
        touched[sequence] = 1 + max(touched)
        chosen[piece] = sequence
    return chosen


@pytest.mark.parametrize(
    ("lengths", "num_sequences", "padding"),
    [([14, 7, 5, 2, 3], 4, 1), ([1, 8, 9, 16, 17, 3, 3, 2], 8, 5), ([8], 1, 0), ([1], 1, 7)],
)
def test_packing_gives_the_golden_counts(lengths: list[int], num_sequences: int, padding: int) -> None:
    documents, firsts, pieces = cut(np.array(lengths), 8)
    sequences = best_fit(pieces, 8)
    assert sequences.max() + 1 == num_sequences
    assert num_sequences * 8 - pieces.sum() == padding
    whole = [length for length in lengths if length <= 8]
    assert sum(np.count_nonzero(documents == d) == 1 for d in range(len(lengths))) == len(whole)
    assert firsts.min() == 0


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 40))
@settings(deadline=None, max_examples=100)
def test_best_fit_equals_the_definition(lengths: list[int], seq_len: int) -> None:
    pieces = cut(np.array(lengths), seq_len)[2]
    assert best_fit(pieces, seq_len).tolist() == best_fit_by_search(pieces.tolist(), seq_len)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(2, 16), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_pack_table_loses_and_invents_no_token(lengths: list[int], seq_len: int, seed: int) -> None:
    starts = np.concatenate(([0], np.cumsum(lengths)))
    documents = {f"{d:032x}": list(range(starts[d], starts[d + 1])) for d in range(len(lengths))}
    tokens = to_binary(pa.array(list(documents.values()), pa.list_(pa.int32())))
    block = pa.table({"doc_id": list(documents), "tokens": tokens})
    found: dict[str, list[int]] = {doc_id: [] for doc_id in documents}
    (batch,) = pack_table(block, seq_len, seed)
    for row in pa.table(unpacked(batch)).to_pylist():
        assert sum(row["doc_lengths"]) == len(row["tokens"]) <= seq_len
        begin = 0
        for doc_id, length in zip(row["doc_ids"], row["doc_lengths"], strict=True):
            piece = row["tokens"][begin : begin + length]
            assert piece == list(range(piece[0], piece[0] + length))  # a run of one document
            found[doc_id] += piece
            begin += length
    assert {doc_id: sorted(tokens) for doc_id, tokens in found.items()} == documents
