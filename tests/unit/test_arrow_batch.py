"""Cells of Arrow class batches, read from the buffers as other writers lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import ipc

from daemon.messages.arrow_batch import ArrowBatch

CELLS = st.lists(st.none() | st.binary(max_size=9), min_size=1, max_size=8)
# As the format allows it for arrays without elements, and other libraries write it.
WITHOUT_OFFSETS = pa.Array.from_buffers(pa.binary(), 0, [None, pa.py_buffer(b""), pa.py_buffer(b"")])


def payloads(columns: Sequence[Any]) -> list[bytes]:
    """Write each column as a record batch of one stream, and read the payloads back."""
    schema = pa.schema([("data", columns[0].type)], metadata={"label": "cat", "content_type": "image/png"})
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, schema) as writer:
        for column in columns:
            writer.write_batch(pa.record_batch([column], schema=schema))
    batch = ArrowBatch(sink.getvalue().to_pybytes(), max_rows=100)
    return [candidate.payload for candidate in batch.samples()]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@given(cells=CELLS, first=st.integers(0, 7))
def test_cells_come_back_from_any_part_of_a_column(kind: Any, cells: list[bytes | None], first: int) -> None:
    """With nulls, which hold nothing, and from a column that is a part of a longer one."""
    first = min(first, len(cells) - 1)
    assert payloads([pa.array(cells, kind).slice(first)]) == [cell or b"" for cell in cells[first:]]


@pytest.mark.parametrize("empty", [WITHOUT_OFFSETS, pa.array([], pa.binary())])
def test_a_record_batch_without_rows_is_passed_over(empty: Any) -> None:
    """A stream may hold some between others; they need not even have offsets."""
    full = pa.array([b"one", b"two"], pa.binary())
    assert payloads([empty, full, empty]) == [b"one", b"two"]
