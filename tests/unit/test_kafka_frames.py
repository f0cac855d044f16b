"""What the daemon and its consumer's process say to each other."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.errors import (
    ConfigError,
    DaemonError,
    MessageRefused,
    OffsetGap,
    SourceUnavailable,
    StreamError,
    SwapError,
)
from daemon.sources.base import Record
from daemon.sources.kafka.frames import (
    Channel,
    pack_error,
    pack_records,
    pack_status,
    unpack_error,
    unpack_records,
    unpack_status,
)
from tests.support.scripted_source import FACTS, LAG

OFFSETS = st.integers(0, 2**63 - 1)
RECORDS = st.lists(
    st.builds(
        Record,
        st.sampled_from(["photos", "bücher"]),
        st.integers(0, 2),
        OFFSETS,
        st.none() | st.binary(max_size=8),
        st.none() | st.binary(max_size=64),
        st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=3),
        st.floats(0, 1e10),
    ),
    max_size=12,
)


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    """Make two connected channels."""
    one, other = (Channel(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


@given(RECORDS)
def test_records_arrive_as_they_were(records: list[Record]) -> None:
    """Order, tombstones, empty values, headers and timestamps survive the way through a socket."""
    one, other = (Channel(end) for end in socket.socketpair())
    try:
        one.send(*pack_records(records))
        assert unpack_records(*other.receive()) == records
    finally:
        one.close()
        other.close()


def test_more_than_a_call_can_send_arrives(ends: tuple[Channel, Channel]) -> None:
    """Thousands of values, and one that is larger than every buffer, come in one piece and in order."""
    values = [b"%d" % n for n in range(3000)] + [bytes(40 * 2**20), b"last"]
    records = [Record("photos", 0, n, None, value) for n, value in enumerate(values)]
    sending = threading.Thread(target=ends[0].send, args=pack_records(records))
    sending.start()
    assert unpack_records(*ends[1].receive()) == records
    sending.join()
    ends[0].send("a small one")
    assert ends[1].receive()[0] == "a small one"


def test_silence_and_an_end_are_told_apart(ends: tuple[Channel, Channel]) -> None:
    """Nothing to read is a time-out, nobody to write is an end."""
    with pytest.raises(TimeoutError):
        ends[1].receive(0.0)
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].receive(1.0)


def test_a_look_at_the_consumer_arrives_as_it_was(ends: tuple[Channel, Channel]) -> None:
    """Facts and lag keep their partitions."""
    ends[0].send(pack_status(FACTS, LAG))
    assert unpack_status(ends[1].receive()[0]) == (FACTS, LAG)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (SourceUnavailable("away"), SourceUnavailable),
        (OffsetGap("a gap"), OffsetGap),
        (ConfigError("a file"), ConfigError),
        (StreamError("fenced"), StreamError),
        (MessageRefused("too large"), StreamError),
    ],
)
def test_errors_keep_their_kind(raised: DaemonError, kind: type[DaemonError]) -> None:
    """What the daemon does about an error hangs on its class, and what a person does on its text."""
    error = unpack_error(*pack_error(raised))
    assert type(error) is kind
    assert str(error) == str(raised)


def test_an_error_of_another_part_is_not_disguised() -> None:
    """A consumer that raises what no source raises has a defect."""
    with pytest.raises(SwapError):
        pack_error(SwapError("not here"))
