"""What the daemon and the process of a Kafka source say to each other: framed plain data over a socket.

A frame is its length and a marshalled value. Marshal is the cheapest encoding there is for numbers and
short strings, makes nothing but data, and both ends are the same interpreter; the records' values go beside
it, because a large buffer that grows is slow to fill.
"""

from __future__ import annotations

import marshal
import select
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from daemon.errors import ConfigError, DaemonError, OffsetGap, SourceUnavailable, StreamError
from daemon.sources.base import Lag, Place, Record
from daemon.sources.kafka.facts import KafkaFacts

# Of the value and of what comes after it.
_LENGTHS = struct.Struct("<QQ")
# The last version without references, which cost a look-up for each object and find nothing here.
_MARSHAL_VERSION = 2
# A buffer as large as most polls is kept; a larger one is given back.
_LEAST_BYTES, _KEPT_BYTES = 2**16, 32 * 2**20
# What one call may send: IOV_MAX of Linux.
_MAX_BUFFERS = 1024
# From the particular to the general: what is raised again is the nearest of them.
_ERRORS: tuple[type[DaemonError], ...] = (OffsetGap, SourceUnavailable, ConfigError, StreamError)


class Channel:
    """Sends and receives whole values over a connected stream socket; one thread sends, one receives.

    Args:
        connection: blocking, and owned from now on.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._buffer = bytearray()

    def send(self, value: Any, blobs: Sequence[bytes] = ()) -> None:
        """Send a value of None, bools, numbers, strings, bytes, tuples, lists and dicts.

        Args:
            value: small; it is copied.
            blobs: what `receive` returns beside it, in one piece; sent from where they lie.

        Raises:
            OSError: the other end is gone.
        """
        body = marshal.dumps(value, _MARSHAL_VERSION)
        self._socket.sendall(_LENGTHS.pack(len(body), sum(map(len, blobs))) + body)
        for start in range(0, len(blobs), _MAX_BUFFERS):
            self._send_all(blobs[start : start + _MAX_BUFFERS])

    def receive(self, timeout: float | None = None) -> tuple[Any, memoryview]:
        """Return the next value and its blobs, waiting for their beginning at most so long (s).

        The blobs' memory is used again by the next call.

        Raises:
            TimeoutError: nothing has come.
            EOFError: the other end is gone.
            OSError: the connection is broken.
        """
        if timeout is not None:
            ready = select.poll()
            ready.register(self._socket, select.POLLIN)
            if not ready.poll(timeout * 1000):
                raise TimeoutError
        value_bytes, blob_bytes = _LENGTHS.unpack(self._read(_LENGTHS.size))
        value = marshal.loads(self._read(value_bytes))  # noqa: S302 - from a process that we started
        return value, self._read(blob_bytes)

    def close(self) -> None:
        """End the connection: the other end sees it, and so does a thread that waits here; idempotent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_all(self, buffers: Sequence[bytes]) -> None:
        sent, total = self._socket.sendmsg(buffers), sum(map(len, buffers))
        if sent < total:
            # A signal came in between.
            self._socket.sendall(b"".join(buffers)[sent:])

    def _read(self, length: int) -> memoryview:
        if len(self._buffer) < length or length < _KEPT_BYTES < len(self._buffer):
            self._buffer = bytearray(max(length, _LEAST_BYTES))
        view = memoryview(self._buffer)[:length]
        done = 0
        while done < length:
            # All of it in one call, mostly: another thread may have its turn each time that one returns.
            read = self._socket.recv_into(view[done:], length - done, socket.MSG_WAITALL)
            if not read:
                raise EOFError("the other end is gone")
            done += read
        return view


# Of one partition: its topic and number, and of each record the offset, key, length of the value (None for a
# tombstone), headers and timestamp.
Run = tuple[str, int, list[tuple[int, bytes | None, int | None, dict[str, bytes], float]]]


def pack_records(records: Sequence[Record]) -> tuple[list[Run], list[bytes]]:
    """Return records as runs of one partition, in the order given, and their values."""
    runs: list[Run] = []
    values: list[bytes] = []
    topic, partition = None, -1
    for r in records:
        if r.partition != partition or r.topic != topic:
            topic, partition = r.topic, r.partition
            fields: list[Any] = []
            runs.append((topic, partition, fields))
        if r.value is not None:
            values.append(r.value)
        fields.append((r.offset, r.key, None if r.value is None else len(r.value), r.headers, r.timestamp))
    return runs, values


def unpack_records(runs: Sequence[Run], values: memoryview) -> list[Record]:
    """Return the records that `pack_records` was given."""
    records: list[Record] = []
    start = 0
    for topic, partition, run in runs:
        for offset, key, length, headers, timestamp in run:
            value = None
            if length is not None:
                value = bytes(values[start : start + length])
                start += length
            records.append(Record(topic, partition, offset, key, value, headers, timestamp))
    return records


def pack_offsets(offsets: Mapping[Place, int]) -> list[tuple[str, int, int]]:
    """Return offsets by partition as plain data."""
    return [(*place, offset) for place, offset in offsets.items()]


def unpack_offsets(offsets: Sequence[tuple[str, int, int]]) -> dict[Place, int]:
    """Return what `pack_offsets` was given."""
    return {Place(topic, partition): offset for topic, partition, offset in offsets}


def pack_status(facts: KafkaFacts, lag: Mapping[Place, Lag]) -> dict[str, Any]:
    """Return one look at a consumer as plain data."""
    return {
        **vars(facts),
        "positions": pack_offsets(facts.positions),
        "stalled": [tuple(place) for place in facts.stalled],
        "lag": [(*place, part.records, part.seconds) for place, part in lag.items()],
    }


def unpack_status(status: Mapping[str, Any]) -> tuple[KafkaFacts, dict[Place, Lag]]:
    """Return what `pack_status` was given."""
    fields = dict(status)
    lag = {Place(*place): Lag(records, seconds) for *place, records, seconds in fields.pop("lag")}
    fields["positions"] = unpack_offsets(fields["positions"])
    fields["stalled"] = tuple(Place(*place) for place in fields["stalled"])
    return KafkaFacts(**fields), lag


def pack_error(error: DaemonError) -> tuple[str, str]:
    """Return an error's kind and text; of one that the other end does not know, the nearest known kind.

    Raises:
        DaemonError: the error itself, if no known kind fits.
    """
    for kind in _ERRORS:
        if isinstance(error, kind):
            return kind.__name__, str(error)
    raise error


def unpack_error(kind: str, text: str) -> DaemonError:
    """Return the error that `pack_error` was given."""
    return {known.__name__: known for known in _ERRORS}[kind](text)
