"""Sending dead letters again to the topic they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from daemon.messages.dead_letter import dead_letter_facts, dead_letter_topic, replayed_message
from daemon.sources.base import Message, Reader, Record, Sink, scan

# Messages that become durable together.
MESSAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Selection:
    """Which letters.

    Attributes:
        partition: of the dead-letter topic.
        offsets: those of the letters; all of them if empty.
        reason: only letters of this reason; None for any.
    """

    partition: int
    offsets: frozenset[int]
    reason: str | None = None


@dataclass(frozen=True)
class ReplayOutcome:
    """What became of the letters: how many were sent, and each one left, by offset, with the reason."""

    sent: int
    left: tuple[tuple[int, str], ...]


def replay_letters(
    reader: Reader, sink: Sink, topic: str, allowed: frozenset[str], selection: Selection
) -> ReplayOutcome:
    """Send letters as the messages they were.

    Args:
        reader: of the log.
        sink: to the same log.
        topic: the labelled topic whose dead letters are meant.
        allowed: topics that may be sent to.
        selection: which letters.

    Raises:
        SourceUnavailable: the log cannot be reached; some letters may have been sent.
        MessageRefused: the log does not take one of them.
    """
    letters = dead_letter_topic(topic)
    missing, left, sent = set(selection.offsets), [], 0
    target, waiting = "", list[Message]()
    for letter in _selected(reader, letters, selection):
        facts = dead_letter_facts(letter)
        missing.discard(letter.offset)
        if selection.reason not in (None, facts.reason):
            continue
        if facts.source_topic not in allowed:
            left.append((letter.offset, f"came from {facts.source_topic!r}, no topic of this stream"))
            continue
        if waiting and (facts.source_topic != target or len(waiting) == MESSAGES_AT_ONCE):
            sink.send(target, waiting)
            sent, waiting = sent + len(waiting), []
        target = facts.source_topic
        waiting.append(replayed_message(letter))
    if waiting:
        sink.send(target, waiting)
    left += [(offset, f"no such letter in {letters}") for offset in sorted(missing)]
    return ReplayOutcome(sent + len(waiting), tuple(left))


def _selected(reader: Reader, topic: str, selection: Selection) -> Iterator[Record]:
    if not selection.offsets:
        yield from (letter for letter in scan(reader, topic) if letter.partition == selection.partition)
        return
    extent = reader.extents(topic).get(selection.partition)
    for offset in sorted(selection.offsets):
        if extent is not None and extent.start <= offset < extent.end:
            found = reader.read(topic, selection.partition, offset, 1)
            yield from (letter for letter in found if letter.offset == offset)
