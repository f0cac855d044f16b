"""When a session starts: pure functions from what is buffered to a decision with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daemon.settings import TriggerSettings
from daemon.state.base import (
    ClassBuffer,
    ClassState,
    Decision,
    GenerationRecord,
    SessionOutcome,
    SessionRecord,
)

NEW_CLASSES = "new_classes"
FLUSH = "flush"
POLICIES = (NEW_CLASSES, FLUSH)
KIND = "trigger"
# In a session's detail: it may be tried again with the same samples.
RETRY = "retry"
# A class head is fitted on at least two samples: one for the adapters, one to check them.
FLUSH_MIN_SAMPLES = 2


@dataclass(frozen=True)
class TriggerDecision:
    """What a policy decided.

    Attributes:
        policy: one of `POLICIES`.
        fired: whether a session starts.
        reason: for people.
        classes: the new classes the session would introduce.
        facts: the numbers behind the reason.
    """

    policy: str
    fired: bool
    reason: str
    classes: tuple[int, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self, at: float) -> Decision:
        """Return it as an entry of the decision log."""
        facts = {"classes": list(self.classes), **self.facts}
        return Decision(at, KIND, self.policy, self.fired, self.reason, facts)


def ready_classes(settings: TriggerSettings, buffers: Sequence[ClassBuffer]) -> list[ClassBuffer]:
    """Return the pending classes with enough training samples."""
    return [b for b in buffers if b.state is ClassState.PENDING and b.train >= settings.min_samples_per_class]


def decide_new_classes(
    settings: TriggerSettings, buffers: Sequence[ClassBuffer], now: float
) -> TriggerDecision:
    """Decide whether new classes have enough samples and have gone quiet, or have waited long enough.

    Args:
        settings: the policy's numbers.
        buffers: what is not learnt yet, per class.
        now: seconds since the epoch.
    """
    pending = [b for b in buffers if b.state is ClassState.PENDING]
    ready = ready_classes(settings, buffers)
    if not pending:
        return TriggerDecision(NEW_CLASSES, False, "no new class")
    if not ready:
        return TriggerDecision(
            NEW_CLASSES,
            False,
            f"no new class has {settings.min_samples_per_class} training samples yet",
            facts={"pending": len(pending), "most_samples": max(b.train for b in pending)},
        )
    classes = tuple(b.class_id for b in ready)
    quiet = now - max(b.last_arrival for b in pending)
    waited = now - min(b.first_arrival for b in ready)
    facts = {
        "quiet_seconds": round(quiet, 3),
        "waited_seconds": round(waited, 3),
        "samples": sum(b.train for b in ready),
    }
    if len(ready) >= settings.max_new_classes:
        reason = f"{len(ready)} new classes are ready, the most for one session"
        return TriggerDecision(NEW_CLASSES, True, reason, classes, facts)
    if quiet >= settings.quiet_seconds:
        reason = f"{len(ready)} new classes are ready and nothing new came for {settings.quiet_seconds:g} s"
        return TriggerDecision(NEW_CLASSES, True, reason, classes, facts)
    if waited >= settings.max_wait_seconds:
        reason = f"{len(ready)} new classes are ready and one has waited {settings.max_wait_seconds:g} s"
        return TriggerDecision(NEW_CLASSES, True, reason, classes, facts)
    return TriggerDecision(
        NEW_CLASSES, False, f"{len(ready)} new classes are ready but samples still arrive", classes, facts
    )


def decide_flush(buffers: Sequence[ClassBuffer]) -> TriggerDecision:
    """Decide whether an operator's flush has anything to learn from."""
    new = [b for b in buffers if b.state is ClassState.PENDING and b.train >= FLUSH_MIN_SAMPLES]
    refreshed = [b for b in buffers if b.state is ClassState.LIVE and b.train > 0]
    facts = {"samples": sum(b.train for b in (*new, *refreshed)), "refreshed_classes": len(refreshed)}
    if not new and not refreshed:
        return TriggerDecision(
            FLUSH, False, "nothing to learn: no unlearnt samples are buffered", facts=facts
        )
    classes = tuple(b.class_id for b in new)
    return TriggerDecision(FLUSH, True, f"flush: {len(new)} new classes", classes, facts)


def without_unsuccessful(
    buffers: Sequence[ClassBuffer], sessions: Sequence[SessionRecord]
) -> list[ClassBuffer]:
    """Leave out the classes whose last session was rejected or failed and that got no sample since its start.

    The same samples would end the same way; without this a rejected session would start again at once,
    for ever. A sample that came while it ran was no part of it. A flush tries again all the same.
    """
    tried: dict[int, float] = {}
    for session in sessions:
        for class_id in session.new_classes:
            tried.pop(class_id, None)
            unsuccessful = session.outcome in (SessionOutcome.REJECTED, SessionOutcome.FAILED)
            if unsuccessful and not session.detail.get(RETRY, False):
                tried[class_id] = session.started_at
    return [b for b in buffers if b.last_arrival > tried.get(b.class_id, float("-inf"))]


def hold_after_rollback(
    live: GenerationRecord | None, generations: Sequence[GenerationRecord]
) -> TriggerDecision | None:
    """Hold all sessions while an older generation than the newest is live, else return None.

    A session would build on the older one and lose the classes that came after it.
    """
    newest = max((g.number for g in generations), default=0)
    if live is None or live.number >= newest:
        return None
    return TriggerDecision(
        NEW_CLASSES,
        False,
        f"rolled back to generation {live.number}: sessions wait until generation {newest} is live again",
    )
