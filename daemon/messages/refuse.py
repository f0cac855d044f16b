"""Samples of classes that are forgotten: dead letters, each by itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from daemon.errors import DeadLetterReason
from daemon.messages.formats import CONTENT_TYPE, ID, LABEL
from daemon.messages.parse import ParsedRecord, Rejected
from daemon.state.base import DeadSample, NewSample


def without_labels(parsed: Sequence[ParsedRecord], labels: Collection[str]) -> list[ParsedRecord]:
    """Make dead letters of the samples with some labels; records without any are returned as they are.

    Args:
        parsed: records, in order.
        labels: what is refused.
    """
    return [_refused(item, labels) if labels and item.samples else item for item in parsed]


def _refused(item: ParsedRecord, labels: Collection[str]) -> ParsedRecord:
    unwanted = [sample for sample in item.samples if sample.label in labels]
    if not unwanted:
        return item
    return item._replace(
        samples=tuple(sample for sample in item.samples if sample.label not in labels),
        dead=(*item.dead, *(_rejected(item, sample) for sample in unwanted)),
    )


def _rejected(item: ParsedRecord, sample: NewSample) -> Rejected:
    """Turn a sample into a raw message by itself, to be replayed once its class is remembered."""
    message = (
        f"class {sample.label!r} was forgotten and takes no samples: `accrete remember` it, then replay this"
    )
    own = {LABEL: sample.label, CONTENT_TYPE: sample.content_type, ID: sample.id}
    headers = {name: value for name, value in item.record.headers.items() if name.lower() not in own}
    headers |= {name: text.encode() for name, text in own.items()}
    dead = DeadSample(sample.place, sample.offset, sample.position, DeadLetterReason.CLASS_FORGOTTEN, message)
    return Rejected(dead, sample.payload, headers)
