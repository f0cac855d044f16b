"""The sample store as the learning library wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from daemon.state.base import State, StoredSample

Decode = Callable[[bytes, str], Tensor]


class StoredSamples:
    """Samples of one stream, decoded when a learner asks for them; a `cl_engine.samples.SampleSet`.

    Args:
        state: the store.
        stream: the stream's name.
        ids: which samples, in this order.
        decode: payload and content type to one input row.
    """

    def __init__(self, state: State, stream: str, ids: Sequence[str], decode: Decode) -> None:
        self._state, self._stream, self._decode = state, stream, decode
        self._ids = tuple(ids)
        self._labels = torch.tensor(state.sample_labels(stream, self._ids), dtype=torch.int64)

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids."""
        return self._ids

    @property
    def labels(self) -> Tensor:
        """Permanent class ids, int64 (N,)."""
        return self._labels

    def load(self, indices: Sequence[int]) -> Tensor:
        """Read and decode some samples.

        Raises:
            InputError: a payload cannot be decoded, though intake accepted it.
        """
        wanted = [self._ids[i] for i in indices]
        rows = [self._decode(s.payload, s.content_type) for s in self._state.payloads(self._stream, wanted)]
        return torch.stack(rows)


def offset_ranges(samples: Iterable[StoredSample]) -> list[dict[str, object]]:
    """Summarise where samples came from: per topic, partition and class the offsets and a count.

    Args:
        samples: any order.
    """
    groups: dict[tuple[str, int, int], list[int]] = {}
    for sample in samples:
        key = (sample.place.topic, sample.place.partition, sample.class_id)
        groups.setdefault(key, []).append(sample.offset)
    return [
        {
            "topic": topic,
            "partition": partition,
            "class_id": class_id,
            "first_offset": min(offsets),
            "last_offset": max(offsets),
            "samples": len(offsets),
        }
        for (topic, partition, class_id), offsets in sorted(groups.items())
    ]
