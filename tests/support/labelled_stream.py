"""A made-up labelled stream whose sessions are the same however it is interrupted.

Classes come in groups of two. A group's first two records lie in one partition, so the classes get
their ids in a known order; its last record completes the second class. Nothing but that record can start the
group's session (the trigger wants two complete classes), and it is produced when all others are stored and
the session before has ended: then which samples a session has does not depend on time.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice

import numpy as np
from PIL import Image

from daemon.messages.encode import Item, arrow_class_batch, json_class_batch, raw_message
from daemon.messages.formats import CONTENT_TYPE, LABEL
from daemon.sources.base import Message
from daemon.state.holdout import is_holdout

STREAM = "parts"
CLASSES_PER_GROUP = 2
TRAIN, HELD_OUT = 12, 4
HOLDOUT_FRACTION = 0.25
PIXELS = 32
MEDIA = "image/png"
# Body pulses of a group: each is produced once the one before is stored.
PULSES = 6


@dataclass(frozen=True)
class Planned:
    """One record to be produced.

    Attributes:
        partition: where to.
        message: what.
        ids: samples that it brings for the first time.
        duplicates: samples in it that another record brings too.
        dead: samples in it that can never be accepted.
    """

    partition: int
    message: Message
    ids: tuple[str, ...] = ()
    duplicates: int = 0
    dead: int = 0


@dataclass(frozen=True)
class Group:
    """The records of two classes, and what must come of them.

    Attributes:
        labels: the classes, in the order of their ids.
        pulses: records that are produced together, pulse after pulse.
        last: the record that makes the group complete; None if no session comes of it.
    """

    labels: tuple[str, ...]
    pulses: tuple[tuple[Planned, ...], ...]
    last: Planned | None


def made_stream(groups: int, partitions: int, seed: int) -> list[Group]:
    """Return a stream; the same arguments give the same bytes."""
    draw = random.Random(seed)
    return [_group(number, partitions, draw) for number in range(groups)]


def one_group_per_partition(first: int, partitions: int, seed: int) -> list[Group]:
    """Return groups each of which lies in one partition wholly, numbered from `first` on."""
    draw = random.Random(seed)
    return [_group(first + partition, 1, draw, partition) for partition in range(partitions)]


def chatter(groups: Sequence[Group], pulses: int) -> Group:
    """Return records that no session depends on: more held-out samples of some groups' classes.

    Args:
        groups: the n-th one's samples lie in partition n.
        pulses: each has one record of each class, and one that cannot be accepted for each partition.
    """
    draw = random.Random(pulses)
    extra = {
        label: _ids(label, held_out=True, more=pulses)[HELD_OUT:]
        for group in groups
        for label in group.labels
    }
    return Group(
        (),
        tuple(
            tuple(
                planned
                for partition, group in enumerate(groups)
                for planned in (
                    *(_raw(partition, label, extra[label][n]) for label in group.labels),
                    Planned(partition, _bad(draw, group.labels[0]), dead=1),
                )
            )
            for n in range(pulses)
        ),
        None,
    )


def _group(number: int, partitions: int, draw: random.Random, base: int = 0) -> Group:
    labels = tuple(f"part-{number:02d}-{n}" for n in range(CLASSES_PER_GROUP))
    train = {label: _ids(label, held_out=False) for label in labels}
    rest = [
        *((label, sample_id) for label in labels for sample_id in train[label][1:]),
        *((label, sample_id) for label in labels for sample_id in _ids(label, held_out=True)),
    ]
    completing = (labels[-1], train[labels[-1]][-1])
    rest.remove(completing)
    draw.shuffle(rest)

    def anywhere() -> int:
        return base + draw.randrange(partitions)

    together = anywhere()
    pulses = [tuple(_raw(together, label, train[label][0]) for label in labels)]
    sent = [(label, train[label][0]) for label in labels]
    for piece in np.array_split(np.arange(len(rest)), PULSES):
        chosen = [rest[i] for i in piece]
        pulse = list(_records(chosen, anywhere, draw))
        label, sample_id = draw.choice(sent)
        again = raw_message(label, MEDIA, Item(picture(label, sample_id), sample_id))
        pulse.append(Planned(anywhere(), again, duplicates=1))
        pulse.append(Planned(anywhere(), _bad(draw, labels[0]), dead=1))
        draw.shuffle(pulse)
        pulses.append(tuple(pulse))
        sent += chosen
    return Group(labels, tuple(pulses), _raw(anywhere(), *completing))


def _records(
    chosen: Sequence[tuple[str, str]], anywhere: Callable[[], int], draw: random.Random
) -> list[Planned]:
    """Put samples into records: some alone, some of a class together, one batch with a bad sample."""
    records = []
    for label in dict.fromkeys(label for label, _ in chosen):
        ids = [sample_id for of, sample_id in chosen if of == label]
        items = [Item(picture(label, sample_id), sample_id) for sample_id in ids]
        form = draw.choice(("raw", "json", "arrow", "damaged"))
        if form == "raw":
            records += [_raw(anywhere(), label, sample_id) for sample_id in ids]
        elif form == "damaged":
            message = json_class_batch(label, MEDIA, [*items, Item(b"no picture")])
            records.append(Planned(anywhere(), message, tuple(ids), dead=1))
        else:
            batch = json_class_batch if form == "json" else arrow_class_batch
            records.append(Planned(anywhere(), batch(label, MEDIA, items), tuple(ids)))
    return records


def _raw(partition: int, label: str, sample_id: str) -> Planned:
    return Planned(
        partition, raw_message(label, MEDIA, Item(picture(label, sample_id), sample_id)), (sample_id,)
    )


def _bad(draw: random.Random, label: str) -> Message:
    """Return a record that can never be accepted."""
    good = raw_message(label, MEDIA, Item(b"no picture"))
    without_label = {name: value for name, value in good.headers.items() if name != LABEL}
    return draw.choice(
        (
            good,
            Message(b"whose?", headers=without_label),
            Message(b"what?", headers={**good.headers, CONTENT_TYPE: b"application/x-unknown"}),
        )
    )


def _ids(label: str, *, held_out: bool, more: int = 0) -> list[str]:
    """Return so many sample ids of a class that are, or are not, held out."""
    candidates = (f"{label}/{n}" for n in count())
    wanted = (i for i in candidates if is_holdout(STREAM, i, HOLDOUT_FRACTION) == held_out)
    return list(islice(wanted, (HELD_OUT if held_out else TRAIN) + more))


def picture(label: str, sample_id: str) -> bytes:
    """Return a PNG: the class's pattern with the sample's own noise."""
    pattern = np.random.default_rng([*label.encode()]).integers(0, 256, (4, 4, 3))
    noise = np.random.default_rng([*sample_id.encode()]).normal(0.0, 20.0, (PIXELS, PIXELS, 3))
    pixels = pattern.repeat(PIXELS // 4, axis=0).repeat(PIXELS // 4, axis=1) + noise
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "PNG", compress_level=1)
    return file.getvalue()
