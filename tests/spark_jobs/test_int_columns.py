import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from spark_jobs.int_columns import from_binary, to_binary, to_lists

ROWS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9), max_size=9)


@given(ROWS, st.integers(0, 9), st.integers(0, 9))
def test_lists_come_back_as_they_were_also_from_a_slice(rows: list[list[int]], first: int, size: int) -> None:
    lists = pa.array(rows, pa.list_(pa.int32()))
    assert to_lists(to_binary(lists)).to_pylist() == rows
    assert to_lists(to_binary(lists)[first : first + size]).to_pylist() == rows[first : first + size]
    assert to_lists(to_binary(lists[first : first + size])).to_pylist() == rows[first : first + size]


def test_elements_and_offsets_are_those_of_the_list() -> None:
    values, offsets = from_binary(to_binary(pa.array([[1, 2], [], [3]], pa.list_(pa.int32()))))
    assert (values.tolist(), offsets.tolist()) == ([1, 2, 3], [0, 2, 2, 3])
