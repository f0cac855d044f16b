"""What a session builds on: the previous generation, and the class table of the next one."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from cl_engine.errors import UnsupportedGeneration
from cl_engine.generation import ClassEntry, Generation
from cl_engine.samples import SessionData


def check_origin(generation: Generation, method: str, backbone: str) -> None:
    """Check that a generation is of this method and this backbone.

    Raises:
        UnsupportedGeneration: it is not.
    """
    if generation.backbone != backbone or generation.method != method:
        raise UnsupportedGeneration(
            f"generation {generation.digest} ({generation.method} on {generation.backbone}) "
            f"is not one of {method} on {backbone}"
        )


def check_unchanged(previous: Generation, settings: BaseModel, names: Sequence[str]) -> None:
    """Check that settings which earlier sessions answer with are still the same.

    Raises:
        ValueError: naming the first that differs.
    """
    for name in names:
        # A setting that came after the generation was made did then what its default does.
        was = previous.settings.get(name, type(settings).model_fields[name].default)
        now = getattr(settings, name)
        if was != now:
            raise ValueError(
                f"{name} is {now!r}, generation {previous.digest} was made with {was!r}, and its classes "
                f"answer with it: set {name} to {was!r}, or start a new stream"
            )


def class_table(previous: Generation | None, data: SessionData) -> tuple[ClassEntry, ...]:
    """Append a session's classes to the previous table.

    Raises:
        ValueError: a new class is known already, or has no sample or no label; the new classes are not
            ascending; a sample's class is neither known nor new; or there is no class at all.
    """
    new = data.new_classes
    if list(new) != sorted(set(new)):
        raise ValueError(f"new_classes {list(new)} must be ascending, each once")
    if previous is None and not new:
        raise ValueError("new_classes is empty: the first session needs a class")
    known = () if previous is None else previous.classes
    ids = {entry.id for entry in known}
    again = ids.intersection(new)
    if again:
        raise ValueError(f"new_classes {sorted(again)} are in the previous generation already")
    present = set(data.train.labels.tolist())
    strangers = present - ids - set(new)
    if strangers:
        raise ValueError(f"training samples of classes {sorted(strangers)}: neither known nor in new_classes")
    missing = set(new) - present
    if missing:
        raise ValueError(f"new_classes {sorted(missing)} have no training sample")
    unnamed = set(new) - set(data.class_labels)
    if unnamed:
        raise ValueError(f"new_classes {sorted(unnamed)} are missing from class_labels: name them")
    return known + tuple(ClassEntry(c, data.class_labels[c], data.session) for c in new)
