"""Append labelled files to a stream's topic, with progress and a time left."""

from __future__ import annotations

import csv
import mimetypes
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from daemon.cli.client import console, fail
from daemon.cli.streams import chosen_stream, opened_topics
from daemon.messages.encode import Item, arrow_class_batch, raw_message
from daemon.messages.formats import TEXT
from daemon.settings import FolderSource, Settings
from daemon.sources.base import Message

# Messages that become durable together; a transaction per message would wait for the disk each time.
MESSAGES_AT_ONCE = 64
UNKNOWN_TYPE = "application/octet-stream"
# A table of texts and labels, by tab; other files are one sample each.
TABLE = ".tsv"
COLUMNS = 2


class _Sample(NamedTuple):
    """A labelled payload: a file that is read when its turn comes, or a text."""

    label: str
    content_type: str
    source: Path | bytes

    def payload(self) -> bytes:
        return self.source if isinstance(self.source, bytes) else self.source.read_bytes()


def produce_files(
    settings: Settings, stream: str | None, paths: Sequence[Path], label: str | None, batch: int
) -> None:
    """Send files; a directory is taken as one class per sub-directory, or as one class if it has none.

    A `.tsv` file is a table: a text and its label in each row, without a header.

    Args:
        settings: where the topic is.
        stream: which stream; None if there is just one.
        paths: files and directories.
        label: of all samples; None takes each file's directory name, or the table's label.
        batch: samples per message.
    """
    name, chosen = chosen_stream(settings, stream)
    source = chosen.source
    if isinstance(source, FolderSource):
        fail(f"stream {name!r} watches {source.path}: put the files there")
    samples = sorted(
        {sample for path in paths for file in _files(path) for sample in _samples(file, label)},
        key=lambda s: (s.label, s.content_type, str(s.source)),
    )
    if not samples:
        fail(f"no files in {', '.join(map(str, paths))}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with opened_topics(settings, name) as topics, Progress(*columns, console=console) as progress:
        task = progress.add_task(f"to {topics.topic}", total=len(samples))
        waiting: list[Message] = []
        done = 0
        for message, count in _messages(samples, batch):
            waiting.append(message)
            done += count
            if len(waiting) == MESSAGES_AT_ONCE:
                topics.sink.send(topics.topic, waiting)
                progress.advance(task, done)
                waiting, done = [], 0
        topics.sink.send(topics.topic, waiting)
        progress.advance(task, done)
    console.print(f"{len(samples)} samples sent to {topics.topic}")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    else:
        fail(f"{path}: no such file or directory")


def _samples(file: Path, label: str | None) -> Iterator[_Sample]:
    """Yield the file as one sample, or of a table of texts (.tsv) each row: the text, then its label."""
    if file.suffix.lower() != TABLE:
        name = label if label is not None else file.resolve().parent.name
        yield _Sample(name, mimetypes.guess_type(file.name)[0] or UNKNOWN_TYPE, file)
        return
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for number, row in enumerate(csv.reader(lines, delimiter="\t"), 1):
                if len(row) != COLUMNS:
                    fail(f"{file}, row {number}: {len(row)} columns, must be 2: the text, a tab, its label")
                yield _Sample(label if label is not None else row[1], TEXT, row[0].encode())
    except (UnicodeDecodeError, csv.Error) as error:
        fail(f"{file} is not a table in UTF-8: {error}")


def _messages(samples: Sequence[_Sample], batch: int) -> Iterator[tuple[Message, int]]:
    for (label, content_type), members in groupby(samples, key=lambda s: (s.label, s.content_type)):
        if batch == 1:
            for sample in members:
                yield raw_message(label, content_type, Item(sample.payload())), 1
            continue
        items: list[Item] = []
        for sample in members:
            items.append(Item(sample.payload()))
            if len(items) == batch:
                yield arrow_class_batch(label, content_type, items), len(items)
                items = []
        if items:
            yield arrow_class_batch(label, content_type, items), len(items)
