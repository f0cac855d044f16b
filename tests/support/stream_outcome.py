"""What a run over a made-up stream left, and how that differs from an undisturbed run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cl_engine.generation import GenerationDirectory
from daemon.clock import SystemClock
from daemon.messages.dead_letter import dead_letter_facts, dead_letter_topic
from daemon.sessions.job import generations_directory
from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.base import scan
from daemon.sources.kafka.reader import KafkaReader
from daemon.state import SqlState
from tests.support.labelled_stream import STREAM
from tests.support.stream_feed import Produced


@dataclass(frozen=True)
class LearntGeneration:
    """What a session made: its classes, the digest of its content, and its accuracy on the holdout."""

    labels: tuple[str, ...]
    digest: str
    a_t: float


@dataclass(frozen=True)
class Outcome:
    """What one or several states hold of a stream.

    Attributes:
        lost: produced samples that no promoted session and no holdout has, and records that can never be
            accepted of which there is no dead letter.
        duplicated: samples that are there, or were counted, more often than once.
        miscounted: by how much the durable totals differ from what was produced.
        repeated_letters: dead letters beyond the first of the same record.
        resumed: sessions that were started more often than once.
        generations: per state, those of the promoted sessions in order.
    """

    lost: int
    duplicated: int
    miscounted: int
    repeated_letters: int
    resumed: int
    generations: tuple[tuple[LearntGeneration, ...], ...]


def read_outcome(produced: Produced, directories: Sequence[Path], settings: KafkaSettings) -> Outcome:
    """Compare the states with what was produced.

    Args:
        produced: what the broker has confirmed.
        directories: state directories whose daemons shared the stream; none of them runs.
        settings: of the topic, for its dead letters.
    """
    found: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    generations = []
    resumed = 0
    for directory in directories:
        state = SqlState.open(directory, holdout_fraction={}, clock=SystemClock(), read_only=True)
        try:
            classes = [c.id for c in state.classes(STREAM)]
            sessions = state.sessions(STREAM)
            for session in sessions:
                found.update(state.session_sample_ids(STREAM, session.id))
            found.update(state.holdout_sample_ids(STREAM, classes, len(produced.ids)))
            counts = state.counts(STREAM)
            generations.append(_generations(directory, [g.digest for g in state.generations(STREAM)]))
        finally:
            state.close()
        resumed += sum(session.attempt > 1 for session in sessions)
        totals.update(stored=counts.stored, duplicate=counts.duplicate, dead=counts.dead_lettered)
    letters = _letters(settings)
    return Outcome(
        lost=len(produced.ids - found.keys()) + max(0, produced.dead - len(letters)),
        duplicated=sum(found.values()) - len(found) + max(0, totals["stored"] - len(found)),
        miscounted=abs(totals["stored"] - len(produced.ids))
        + abs(totals["duplicate"] - produced.duplicates)
        + abs(totals["dead"] - produced.dead),
        repeated_letters=letters.total() - len(letters),
        resumed=resumed,
        generations=tuple(generations),
    )


def divergences(generations: Sequence[LearntGeneration], undisturbed: Sequence[LearntGeneration]) -> int:
    """Count generations that differ from the undisturbed run's of the same number, or that it lacks."""
    expected = [*undisturbed, *[None] * max(0, len(generations) - len(undisturbed))]
    return sum(one != other for one, other in zip(generations, expected, strict=False))


def _generations(directory: Path, digests: Sequence[str]) -> tuple[LearntGeneration, ...]:
    stored = GenerationDirectory(generations_directory(directory))
    learnt = []
    for digest in digests:
        generation = stored.load(digest)
        labels = tuple(entry.label for entry in generation.classes)
        learnt.append(LearntGeneration(labels, digest, float(generation.evaluation["a_t"])))
    return tuple(learnt)


def _letters(settings: KafkaSettings) -> Counter[str]:
    reader = KafkaReader(settings)
    try:
        letters = scan(reader, dead_letter_topic(settings.topic))
        return Counter(dead_letter_facts(letter).place for letter in letters)
    finally:
        reader.close()
