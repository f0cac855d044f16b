"""Append labelled files to a stream's topic, with progress and a time left."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from daemon.cli.client import console, fail
from daemon.cli.streams import chosen_stream, opened_topics
from daemon.messages.encode import Item, arrow_class_batch, raw_message
from daemon.settings import FolderSource, Settings
from daemon.sources.base import Message

# Messages that become durable together; a transaction per message would wait for the disk each time.
MESSAGES_AT_ONCE = 64
UNKNOWN_TYPE = "application/octet-stream"


def produce_files(
    settings: Settings, stream: str | None, paths: Sequence[Path], label: str | None, batch: int
) -> None:
    """Send files; a directory is taken as one class per sub-directory, or as one class if it has none.

    Args:
        settings: where the topic is.
        stream: which stream; None if there is just one.
        paths: files and directories.
        label: of all files; None takes each file's directory name.
        batch: samples per message.
    """
    name, chosen = chosen_stream(settings, stream)
    source = chosen.source
    if isinstance(source, FolderSource):
        fail(f"stream {name!r} watches {source.path}: put the files there")
    files = sorted(
        {file for path in paths for file in _files(path)}, key=lambda f: (_label(f, label), str(f))
    )
    if not files:
        fail(f"no files in {', '.join(map(str, paths))}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with opened_topics(settings, name) as topics, Progress(*columns, console=console) as progress:
        task = progress.add_task(f"to {topics.topic}", total=len(files))
        waiting: list[Message] = []
        samples = 0
        for message, count in _messages(files, label, batch):
            waiting.append(message)
            samples += count
            if len(waiting) == MESSAGES_AT_ONCE:
                topics.sink.send(topics.topic, waiting)
                progress.advance(task, samples)
                waiting, samples = [], 0
        topics.sink.send(topics.topic, waiting)
        progress.advance(task, samples)
    console.print(f"{len(files)} samples sent to {topics.topic}")


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    else:
        fail(f"{path}: no such file or directory")


def _label(file: Path, label: str | None) -> str:
    return label if label is not None else file.resolve().parent.name


def _messages(files: Sequence[Path], label: str | None, batch: int) -> Iterator[tuple[Message, int]]:
    def group(file: Path) -> tuple[str, str]:
        return _label(file, label), mimetypes.guess_type(file.name)[0] or UNKNOWN_TYPE

    for (name, content_type), members in groupby(files, key=group):
        if batch == 1:
            for file in members:
                yield raw_message(name, content_type, Item(file.read_bytes())), 1
            continue
        items: list[Item] = []
        for file in members:
            items.append(Item(file.read_bytes()))
            if len(items) == batch:
                yield arrow_class_batch(name, content_type, items), len(items)
                items = []
        if items:
            yield arrow_class_batch(name, content_type, items), len(items)
