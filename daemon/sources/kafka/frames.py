"""What the daemon and the process of a Kafka source say to each other: framed plain data over a socket.

A frame is its length and a marshalled value. Marshal is the cheapest encoding there is for bytes, numbers and
strings (a record of 4 KB takes about a microsecond, most of it copying), makes nothing but data, and both
ends are the same interpreter.
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

_LENGTH = struct.Struct("<Q")
# The last version without references, which cost a look-up for each object and find nothing here.
_MARSHAL_VERSION = 2
# A buffer as large as most polls is kept; a larger one is given back.
_KEPT_BYTES = 32 * 2**20
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

    def send(self, value: object) -> None:
        """Send a value of None, bools, numbers, strings, bytes, tuples, lists and dicts.

        Raises:
            OSError: the other end is gone.
        """
        body = marshal.dumps(value, _MARSHAL_VERSION)
        self._socket.sendall(_LENGTH.pack(len(body)))
        self._socket.sendall(body)

    def receive(self, timeout: float | None = None) -> Any:
        """Return the next value, waiting for its beginning at most so long (s).

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
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        value = marshal.loads(self._read(length))  # noqa: S302 - from a process that we started
        if len(self._buffer) > _KEPT_BYTES:
            self._buffer = bytearray()
        return value

    def close(self) -> None:
        """End the connection: the other end sees it, and so does a thread that waits here; idempotent."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, length: int) -> memoryview:
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        view = memoryview(self._buffer)[:length]
        done = 0
        while done < length:
            # All of it in one call, mostly: another thread may have its turn each time that one returns.
            read = self._socket.recv_into(view[done:], length - done, socket.MSG_WAITALL)
            if not read:
                raise EOFError("the other end is gone")
            done += read
        return view


Run = tuple[str, int, list[tuple[int, bytes | None, bytes | None, dict[str, bytes], float]]]


def pack_records(records: Sequence[Record]) -> list[Run]:
    """Return records as plain data: runs of one partition, in the order given."""
    runs: list[Run] = []
    topic, partition = None, -1
    for r in records:
        if r.partition != partition or r.topic != topic:
            topic, partition = r.topic, r.partition
            fields: list[Any] = []
            runs.append((topic, partition, fields))
        fields.append((r.offset, r.key, r.value, r.headers, r.timestamp))
    return runs


def unpack_records(runs: Sequence[Run]) -> list[Record]:
    """Return the records that `pack_records` was given."""
    return [Record(topic, partition, *fields) for topic, partition, run in runs for fields in run]


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
