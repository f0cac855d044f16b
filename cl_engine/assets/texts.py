"""Labelled text sets: converted once to one JSON file."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cl_engine.assets.archives import Members
from cl_engine.errors import AssetError

TEXTS = "texts.json"
PARTS = ("train", "dev", "test")

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelledTexts:
    """A labelled text set with its training, development and test parts.

    Attributes:
        train_texts: N texts.
        train_labels: int64 (N,), indices into `class_names`.
        dev_texts: for choices; never part of a reported figure.
        dev_labels: int64, as above.
        test_texts: for reported figures only.
        test_labels: int64, as above.
        class_names: one name per label, sorted.
    """

    train_texts: tuple[str, ...]
    train_labels: Labels
    dev_texts: tuple[str, ...]
    dev_labels: Labels
    test_texts: tuple[str, ...]
    test_labels: Labels
    class_names: tuple[str, ...]


def convert_intents(members: Members, directory: Path) -> None:
    """Convert three tab-separated files with a header: the text, then the label in the last column.

    Texts may be quoted and hold line breaks, so the lines are read by the rules of CSV.

    Raises:
        ValueError: a row has no label, or the parts have different classes.
    """
    parts = {PurePosixPath(name).stem: _rows(content) for name, content in members.items()}
    names = sorted({label for _, label in parts["train"]})
    for part in PARTS:
        if {label for _, label in parts[part]} != set(names):
            raise ValueError(f"the classes of {part} differ from those of train")
    index = {name: number for number, name in enumerate(names)}
    made = {
        "class_names": names,
        **{f"{part}_texts": [text for text, _ in parts[part]] for part in PARTS},
        **{f"{part}_labels": [index[label] for _, label in parts[part]] for part in PARTS},
    }
    (directory / TEXTS).write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")


def load(directory: Path) -> LabelledTexts:
    """Read a converted text set.

    Raises:
        AssetError: the converted file is damaged.
    """
    try:
        made = json.loads((directory / TEXTS).read_text(encoding="utf-8"))
        return LabelledTexts(
            train_texts=tuple(made["train_texts"]),
            train_labels=np.array(made["train_labels"], dtype=np.int64),
            dev_texts=tuple(made["dev_texts"]),
            dev_labels=np.array(made["dev_labels"], dtype=np.int64),
            test_texts=tuple(made["test_texts"]),
            test_labels=np.array(made["test_labels"], dtype=np.int64),
            class_names=tuple(made["class_names"]),
        )
    except (ValueError, KeyError) as error:
        raise AssetError(f"{directory / TEXTS} is damaged: delete {directory}, fetch again") from error


def _rows(content: bytes) -> list[tuple[str, str]]:
    rows = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), delimiter="\t", strict=True))
    if any(len(row) < 2 for row in rows):
        raise ValueError("a row has no label")
    return [(row[0].strip(), row[-1].strip()) for row in rows[1:]]
