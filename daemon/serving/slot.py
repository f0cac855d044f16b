"""The generations a stream holds in memory, and the pointer to the one that answers.

A request takes a lease before it decodes its input and gives it back with its answer, so it finishes
on the generation it started on, whatever is published meanwhile. A swap assigns one pointer; nothing
is loaded, computed or freed while the lock is held.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import structlog

from cl_engine.learners.base import Servable
from daemon.errors import NotReady, UnknownGeneration
from daemon.metrics import Metrics

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class GenerationRef:
    """What an answer says about its generation; holds nothing on the device.

    Attributes:
        number: the stream's ascending number of the generation.
        digest: digest of its content.
        class_ids: permanent class ids in the order of the score columns.
        labels: class id to label.
        nbytes: bytes it holds on the device beyond the shared backbone.
    """

    number: int
    digest: str
    class_ids: tuple[int, ...]
    labels: Mapping[int, str]
    nbytes: int


@dataclass(frozen=True)
class SwapReport:
    """What moving the live pointer took.

    Attributes:
        live: the generation that answers now.
        previous: the one that answered before, None at the first publication.
        retired: digests that left residency; each is freed with its last lease.
        pause_seconds: how long the lock was held, so no request could be admitted.
    """

    live: GenerationRef
    previous: GenerationRef | None
    retired: tuple[str, ...]
    pause_seconds: float


class _Resident:
    """One generation in memory; every field but `ref` is guarded by the slot's lock.

    Attributes:
        servable: None once freed; never None while `leases` is above 0.
        leases: requests that are using it, never negative.
        retired: no new lease can be taken; the last lease frees it.
        draining_since: when it stopped being live with leases still out, else None.
    """

    __slots__ = ("draining_since", "leases", "ref", "retired", "servable")

    def __init__(self, servable: Servable, number: int) -> None:
        self.ref = GenerationRef(
            number, servable.digest, servable.class_ids, dict(servable.labels), servable.nbytes()
        )
        self.servable: Servable | None = servable
        self.leases = 0
        self.retired = False
        self.draining_since: float | None = None


class Lease:
    """The right to use one generation until `release`; also a context manager.

    Releasing twice is harmless, so that a request's owner can be changed without counting.
    """

    __slots__ = ("_released", "_resident", "_slot")

    def __init__(self, slot: LiveSlot, resident: _Resident) -> None:
        self._slot = slot
        self._resident = resident
        self._released = False

    @property
    def stream(self) -> str:
        """Name of the stream."""
        return self._slot.stream

    @property
    def generation(self) -> GenerationRef:
        """The generation it pins; usable after the release too."""
        return self._resident.ref

    @property
    def servable(self) -> Servable:
        """The pinned generation's servable; not to be kept beyond the release."""
        servable = self._resident.servable
        assert not self._released, "a lease was used after its release"
        assert servable is not None, "a leased generation was freed"
        return servable

    @property
    def key(self) -> int:
        """Equal for leases that can be computed together."""
        return id(self._resident)

    def release(self) -> None:
        """Give the generation back; from any thread, any number of times."""
        self._slot._release(self)  # the slot's lock guards the flag too

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class LiveSlot:
    """One stream's resident generations and its live pointer.

    Every method may be called from any thread, and none of them waits for a request.

    Args:
        stream: the stream's name.
        max_resident_generations: generations kept for a rollback without loading, the live one included.
        metrics: where pauses, drains and residency are shown.
    """

    def __init__(self, stream: str, max_resident_generations: int, metrics: Metrics) -> None:
        if max_resident_generations < 1:
            raise ValueError(
                f"max_resident_generations is {max_resident_generations}: the live one needs at least 1"
            )
        self.stream = stream
        self._max_resident = max_resident_generations
        self._metrics = metrics
        self._condition = threading.Condition()
        self._live: _Resident | None = None
        # Oldest promotion first: the order in which generations leave residency.
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._retiring: set[_Resident] = set()

    # -- requests
    def acquire(self, digest: str | None = None) -> Lease:
        """Pin the live generation, or a resident one by digest.

        Raises:
            NotReady: nothing was published yet.
            UnknownGeneration: the digest is not resident.
        """
        with self._condition:
            resident = self._live if digest is None else self._residents.get(digest)
            if resident is not None:
                resident.leases += 1
                return Lease(self, resident)
        if digest is None:
            raise NotReady(
                f"stream {self.stream!r} has learnt nothing yet: send labelled samples and wait for "
                "its first session"
            )
        raise self._unknown(digest)

    def resolve(self, version: str) -> str:
        """Return the digest of a resident generation, given its digest or its number.

        Raises:
            UnknownGeneration: none such is resident.
        """
        for ref in self.residents():
            if version in (ref.digest, str(ref.number)):
                return ref.digest
        raise self._unknown(version)

    def live(self) -> GenerationRef | None:
        """Return the generation that answers, None before the first publication."""
        live = self._live
        return None if live is None else live.ref

    def residents(self) -> tuple[GenerationRef, ...]:
        """List the resident generations, the latest promotion (the live one) first."""
        with self._condition:
            return tuple(resident.ref for resident in reversed(self._residents.values()))

    # -- swaps
    def publish(self, servable: Servable, number: int) -> SwapReport:
        """Make a servable the live one; the caller has built and warmed it up.

        Requests that hold a lease finish on theirs. A generation beyond the residency limit takes no
        new lease and is freed with its last one.

        Args:
            servable: ready to answer.
            number: the stream's number of its generation.
        """
        return self._promote(_Resident(servable, number))

    def promote_resident(self, digest: str) -> SwapReport:
        """Make a resident generation the live one again; loads nothing.

        Raises:
            UnknownGeneration: it is not resident; build and `publish` it.
        """
        return self._promote(digest)

    def discard(self, digests: Collection[str]) -> None:
        """Let generations leave residency now; requests that hold a lease finish on theirs.

        Raises:
            ValueError: the live one is among them.
        """
        with self._condition:
            if self._live is not None and self._live.ref.digest in digests:
                raise ValueError(f"generation {self._live.ref.digest} is live: publish another one first")
            gone = [self._residents.pop(digest) for digest in digests if digest in self._residents]
            freed = self._retire(gone)
        freed.clear()
        self._show()

    def drain(self, timeout: float) -> bool:
        """Wait until every retired generation is freed, for at most `timeout` seconds.

        Returns:
            Whether all of them are.
        """
        with self._condition:
            return self._condition.wait_for(lambda: not self._retiring, timeout)

    def _promote(self, target: _Resident | str) -> SwapReport:
        freed: list[Servable | None] = []
        with self._condition:
            # Only the time the lock is held counts: waiting for it holds up nobody.
            start = time.perf_counter()
            resident = self._residents.get(target) if isinstance(target, str) else target
            if resident is not None:
                previous, self._live = self._live, resident
                retired = self._settle(resident, previous, start)
                idle = previous is not None and previous is not resident and previous.leases == 0
                freed = self._retire(retired)
                pause = time.perf_counter() - start
        if resident is None:
            assert isinstance(target, str)
            raise self._unknown(target)
        freed.clear()  # tensors go outside the lock: freeing device memory takes its time
        m, stream = self._metrics, self.stream
        m.swap_pause.labels(stream).observe(pause)
        m.swap_duration.labels(stream, "publish").observe(pause)
        if idle:
            m.swap_duration.labels(stream, "drain").observe(0.0)
        self._show()
        return SwapReport(
            live=resident.ref,
            previous=None if previous is None else previous.ref,
            retired=tuple(r.ref.digest for r in retired),
            pause_seconds=pause,
        )

    def _settle(self, live: _Resident, previous: _Resident | None, now: float) -> list[_Resident]:
        """Order residency after a promotion; the lock is held.

        Returns:
            What left it.
        """
        live.draining_since = None
        replaced = self._residents.pop(live.ref.digest, None)
        self._residents[live.ref.digest] = live
        retired = [replaced] if replaced is not None and replaced is not live else []
        while len(self._residents) > self._max_resident:
            retired.append(self._residents.popitem(last=False)[1])
        if previous is not None and previous is not live and previous.leases:
            previous.draining_since = now
        return retired

    def _retire(self, residents: Sequence[_Resident]) -> list[Servable | None]:
        """Give out no more leases on what left residency; the lock is held.

        Returns:
            What nobody uses, to be freed outside the lock.
        """
        freed = []
        for resident in residents:
            resident.retired = True
            if resident.leases:
                self._retiring.add(resident)
            else:
                freed.append(resident.servable)
                resident.servable = None
        return freed

    def _release(self, lease: Lease) -> None:
        resident = lease._resident
        freed: Servable | None = None
        drained: float | None = None
        with self._condition:
            if lease._released:
                return
            lease._released = True
            resident.leases -= 1
            assert resident.leases >= 0, "a lease was counted twice"
            if resident.leases == 0:
                if resident.draining_since is not None:
                    drained = time.perf_counter() - resident.draining_since
                    resident.draining_since = None
                if resident.retired:
                    freed, resident.servable = resident.servable, None
                    self._retiring.discard(resident)
                    self._condition.notify_all()
        if drained is not None:
            self._metrics.swap_duration.labels(self.stream, "drain").observe(drained)
        if freed is not None:
            log.info("generation.freed", stream=self.stream, generation=resident.ref.number)
            del freed
            self._show()

    def _show(self) -> None:
        with self._condition:
            held = [*self._residents.values(), *self._retiring]
            number = self._live.ref.number if self._live else 0
        m, stream = self._metrics, self.stream
        m.resident_generations.labels(stream).set(len(held))
        m.resident_bytes.labels(stream).set(sum(r.ref.nbytes for r in held))
        m.live_generation.labels(stream).set(number)

    def _unknown(self, version: str) -> UnknownGeneration:
        numbers = ", ".join(str(ref.number) for ref in self.residents()) or "none"
        return UnknownGeneration(
            f"stream {self.stream!r} holds no generation {version!r} in memory (resident: {numbers}): "
            "ask for one of these, or roll back to it first"
        )
