"""A data set as a stream of sessions: B0-IncN, classes in the order that a seed draws."""

from __future__ import annotations

from dataclasses import replace

import torch

from cl_engine.bench.data import BenchData, Subset
from cl_engine.samples import SampleSet, SessionData


def split_classes(classes: int, base: int, increment: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """Divide class ids into sessions.

    Args:
        classes: how many there are.
        base: classes of the first session; 0: as many as any other (B0).
        increment: classes of each session; the last one takes what is left.
        seed: decides the order.

    Raises:
        ValueError: fewer than two sessions.
    """
    first = base or increment
    if increment < 1 or base < 0 or first >= classes:
        raise ValueError(
            f"base {base} and increment {increment} do not divide {classes} classes into sessions: at least "
            "two sessions of one class are needed"
        )
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(seed)).tolist()
    starts = [0, *range(first, classes, increment)]
    return tuple(
        tuple(sorted(order[start:stop])) for start, stop in zip(starts, [*starts[1:], classes], strict=True)
    )


class Stream:
    """The sessions of one seed.

    Args:
        data: the data set.
        sessions: class ids of each session.
        seed: of the learners.
    """

    def __init__(self, data: BenchData, sessions: tuple[tuple[int, ...], ...], seed: int) -> None:
        self.data, self.sessions, self.seed = data, sessions, seed

    def session(self, index: int) -> SessionData:
        """Return what a learner sees: the session's own samples, and the holdout of all classes so far."""
        return self._data(index, self.sessions[index])

    def alone(self, index: int) -> SessionData:
        """Return a session as if it were the first and only one."""
        own = self.sessions[index]
        data = self._data(index, own)
        labels = {c: data.class_labels[c] for c in own}
        return replace(data, session=0, holdout=_of_classes(self.data.holdout, own), class_labels=labels)

    def everything(self, index: int) -> SessionData:
        """Return all classes so far as if they came at once, for joint training."""
        return self._data(index, self.known(index))

    def known(self, index: int) -> tuple[int, ...]:
        """Return the classes learnt after a session, ascending."""
        return tuple(sorted(c for session in self.sessions[: index + 1] for c in session))

    def test(self, index: int) -> SampleSet:
        """Return the test samples of all classes learnt after a session."""
        return _of_classes(self.data.test, self.known(index))

    def class_to_session(self, index: int) -> dict[int, int]:
        """Return which session introduced each class learnt so far."""
        return {c: s for s, session in enumerate(self.sessions[: index + 1]) for c in session}

    def _data(self, index: int, new: tuple[int, ...]) -> SessionData:
        known = self.known(index)
        return SessionData(
            session=index,
            new_classes=new,
            train=_of_classes(self.data.train, new),
            holdout=_of_classes(self.data.holdout, known),
            class_labels={c: self.data.class_names[c] for c in known},
            seed=self.seed,
        )


def _of_classes(samples: SampleSet, classes: tuple[int, ...]) -> Subset:
    wanted = torch.isin(samples.labels, torch.tensor(classes))
    return Subset(samples, wanted.nonzero().squeeze(1).tolist())
