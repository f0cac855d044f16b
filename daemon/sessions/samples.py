"""The sample store as the learning library wants it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from daemon.errors import UnreadableSamples
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
            UnreadableSamples: a payload cannot be decoded, though intake accepted it; names every such
                sample of this set, so that one look at them all is enough.
        """
        wanted = [self._ids[i] for i in indices]
        try:
            return torch.stack([self._decoded(s) for s in self._state.payloads(self._stream, wanted)])
        except MemoryError:
            raise
        except Exception:
            # Decoders meet hostile bytes with almost any exception.
            reasons = self.unreadable()
            if not reasons:
                raise
            raise UnreadableSamples(reasons) from None

    def _decoded(self, sample: StoredSample) -> Tensor:
        return self._decode(sample.payload, sample.content_type)

    def unreadable(self) -> dict[str, str]:
        """Decode every sample; return what is wrong with those that cannot be, by id."""
        reasons = {}
        for sample in self._state.payloads(self._stream, self._ids):
            try:
                self._decoded(sample)
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - as above
                reasons[sample.id] = str(error)
        return reasons


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
