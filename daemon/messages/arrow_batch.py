"""Reading Arrow IPC streams of samples."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, repeat
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from daemon.errors import DeadLetter, DeadLetterReason
from daemon.messages.arrow_compression import is_compressed
from daemon.messages.candidate import Candidate
from daemon.messages.checks import check_critical, shown
from daemon.messages.formats import SCHEMA_VERSION

_NAMES = frozenset({"data", "id", "label", "content_type", "schema_version", "critical"})
_TEXT_COLUMNS = ("id", "label", "content_type")


class ArrowBatch:
    """A checked Arrow IPC stream.

    Attributes:
        label, content_type: from the schema's metadata, for rows whose column has none.
        labelled: whether there is a label column.

    Raises:
        DeadLetter: not an Arrow stream, damaged, compressed, wrong columns or too many rows.
    """

    def __init__(self, value: bytes, max_rows: int) -> None:
        try:
            _refuse_compression(value)
            reader = ipc.open_stream(pa.py_buffer(value))
            schema: Any = reader.schema
            metadata = {
                key.decode("utf-8"): text.decode("utf-8") for key, text in (schema.metadata or {}).items()
            }
            _check_schema(schema, metadata)
            self._batches = _read(reader, max_rows)
        except (pa.ArrowException, UnicodeDecodeError, OSError, ValueError) as error:
            # pyarrow reports damage found while reading as OSError.
            raise DeadLetter(
                DeadLetterReason.BAD_ENVELOPE, f"the message is not a valid Arrow IPC stream: {error}"
            ) from error
        self.label = metadata.get("label")
        self.content_type = metadata.get("content_type")
        self.labelled = "label" in schema.names

    def samples(self) -> Iterator[Candidate]:
        """Yield the rows."""
        for batch in self._batches:
            # Whole columns at a time: a cell by itself costs several times as much.
            data = _payloads(batch.column("data"))
            ids, labels, content_types = (
                batch.column(name).to_pylist() if name in batch.schema.names else repeat(None)
                for name in _TEXT_COLUMNS
            )
            for payload, sample_id, label, content_type in zip(
                data, ids, labels, content_types, strict=False
            ):
                yield Candidate(label or self.label, content_type or self.content_type, sample_id, payload)


def _check_schema(schema: Any, metadata: dict[str, str]) -> None:
    version = metadata.get("schema_version", str(SCHEMA_VERSION))
    if version != str(SCHEMA_VERSION):
        raise DeadLetter(
            DeadLetterReason.UNKNOWN_SCHEMA,
            f"schema_version is {shown(version)}, this release reads {SCHEMA_VERSION}: update the daemon",
        )
    check_critical(metadata.get("critical", "").split(","), _NAMES)
    if len(set(schema.names)) != len(schema.names):
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, "the Arrow schema names a column twice: rename one")
    if "data" not in schema.names or not _is_binary(schema.field("data").type):
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, "the Arrow schema needs a column data of type binary")
    for name in _TEXT_COLUMNS:
        if name in schema.names and not _is_text(schema.field(name).type):
            raise DeadLetter(
                DeadLetterReason.BAD_ENVELOPE,
                f"the Arrow column {name} is of type {schema.field(name).type}: use string",
            )


def _refuse_compression(value: bytes) -> None:
    messages = ipc.MessageReader.open_stream(pa.py_buffer(value))
    for message in messages:
        if is_compressed(message.metadata.to_pybytes(), message.type):
            raise DeadLetter(
                DeadLetterReason.BAD_ENVELOPE,
                "the Arrow stream is compressed, which could hide any size: write it without compression "
                "(images are compressed already, and Kafka compresses batches)",
            )


def _read(reader: Any, max_rows: int) -> list[Any]:
    batches, num_rows = [], 0
    for batch in reader:
        # Offsets inside the buffers come from outside: unchecked, reading a cell could leave the buffer.
        batch.validate(full=True)
        num_rows += batch.num_rows
        if num_rows > max_rows:
            raise DeadLetter(
                DeadLetterReason.TOO_LARGE,
                f"the class batch has more than {max_rows} samples: "
                "send fewer or raise limits.max_samples_per_message",
            )
        # One without rows is allowed, and need not have offsets.
        if batch.num_rows:
            batches.append(batch)
    if num_rows == 0:
        raise DeadLetter(DeadLetterReason.BAD_ENVELOPE, "the class batch has no samples")
    return batches


def _payloads(column: Any) -> Iterator[bytes]:
    """Yield the cells of a checked column of binary data with rows, nothing for null.

    From its buffers: pyarrow makes two objects of its own for each cell.
    """
    _, offsets, content = column.buffers()
    kind = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    bounds = np.frombuffer(offsets, kind, len(column) + 1, column.offset * kind().itemsize).tolist()
    view = memoryview(b"" if content is None else content)
    # A null's bounds may hold bytes.
    valid = column.is_valid().to_pylist() if column.null_count else repeat(True)
    for (start, end), there in zip(pairwise(bounds), valid, strict=False):
        yield bytes(view[start:end]) if there else b""


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    # Not dictionaries: one long value referred to by every row would be as large as all of them.
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
