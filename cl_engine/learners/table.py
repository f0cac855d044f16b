"""The class table of the next generation."""

from __future__ import annotations

from cl_engine.generation import ClassEntry, Generation
from cl_engine.samples import SessionData


def class_table(previous: Generation | None, data: SessionData) -> tuple[ClassEntry, ...]:
    """Append a session's classes to the previous table.

    Raises:
        ValueError: a new class is known already or has no sample, or a sample's class is neither.
    """
    known = () if previous is None else previous.classes
    ids = {entry.id for entry in known}
    again = ids.intersection(data.new_classes)
    if again:
        raise ValueError(f"new_classes {sorted(again)} are in the previous generation already")
    present = set(data.train.labels.tolist())
    strangers = present - ids - set(data.new_classes)
    if strangers:
        raise ValueError(f"training samples of classes {sorted(strangers)}: neither known nor in new_classes")
    missing = set(data.new_classes) - present
    if missing:
        raise ValueError(f"new_classes {sorted(missing)} have no training sample")
    return known + tuple(ClassEntry(c, data.class_labels[c], data.session) for c in sorted(data.new_classes))
