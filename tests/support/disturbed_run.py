"""One run of a made-up stream through daemons on Apache Kafka, for a test that disturbs it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from kafka import KafkaAdminClient
from safetensors.torch import save_file

from daemon.settings import KafkaSource as KafkaSettings
from daemon.sources.kafka.topics import create_topics, plan_topics
from tests.support.forked_daemon import ForkedDaemon
from tests.support.group_view import GroupView, view_group
from tests.support.kafka_clients import committed_offsets, kafka_settings
from tests.support.labelled_stream import (
    CLASSES_PER_GROUP,
    HOLDOUT_FRACTION,
    PIXELS,
    STREAM,
    TRAIN,
    Group,
)
from tests.support.stream_feed import Feeder, StateWatch, Stuck
from tests.support.stream_outcome import Outcome, read_outcome

PARTITIONS = 4
# timm's smallest plain vision transformer: 0.3 million weights, so that a session takes a second.
BACKBONE = "test_vit"
LEARNER = {
    "method": "sgds",
    "options": {"adapter_blocks": 1, "feature_blocks": 1, "explore_epochs": 2, "compact_epochs": 2},
}
# No trigger of its own time: only a completed group starts a session.
NEVER = 1e6
COMMIT_SECONDS = 60.0


def write_weights(path: Path) -> None:
    """Write random weights for the backbone; every call writes the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(BACKBONE, pretrained=False, num_classes=0, img_size=PIXELS)
    save_file(model.state_dict(), path)


class DisturbedRun:
    """A topic, its producer, and one or two daemons that share it.

    Args:
        directory: for everything; made.
        weights: of the backbone.
        groups: the stream.
        address: of the broker, for the producer.
        daemon_address: the broker as the daemons see it, through a proxy perhaps.
        daemons: how many, each with a state of its own.
        source: settings of the Kafka source that differ from the test's usual ones.
        pulse_seconds: from one pulse of records to the next at least, after the first group.
    """

    def __init__(
        self,
        directory: Path,
        weights: Path,
        groups: Sequence[Group],
        address: str,
        *,
        daemon_address: str | None = None,
        daemons: int = 1,
        source: Mapping[str, object] | None = None,
        pulse_seconds: float = 0.0,
    ) -> None:
        self.groups = groups
        topic = directory.name
        self.settings = kafka_settings(daemon_address or address, topic, **(source or {}))
        self.at_broker = kafka_settings(address, topic)
        create_topics(self.at_broker, plan_topics(self.at_broker, partitions=PARTITIONS), replication=1)
        self._directory, self._weights = directory, weights
        self._admin: KafkaAdminClient | None = None
        self.daemons = [self._made(f"daemon-{n}", f"state-{n}") for n in range(daemons)]
        self.directories = [daemon.state_directory for daemon in self.daemons]
        self._watches = [StateWatch(d) for d in self.directories]
        self.feeder = Feeder(address, topic, groups, self._watches, pulse_seconds)
        self._pause = threading.Event()

    @property
    def daemon(self) -> ForkedDaemon:
        """The first daemon."""
        return self.daemons[0]

    def second_on_same_state(self) -> ForkedDaemon:
        """Return another daemon with the first one's configuration."""
        return self._made("second", "state-0")

    def _made(self, name: str, state: str) -> ForkedDaemon:
        own = self._directory / name
        own.mkdir(parents=True)
        return ForkedDaemon(own, _daemon_settings(self._directory / state, self._weights, self.settings))

    def rest(self, seconds: float) -> None:
        """Let so much time pass."""
        self._pause.wait(seconds)

    def wait(self, reached: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
        """Wait until something holds, while all daemons live.

        Raises:
            Stuck: it does not in time.
            DaemonEnded: a daemon ended.
        """
        deadline = time.monotonic() + seconds
        while not reached():
            for daemon in self.daemons:
                daemon.check()
            self.feeder.done()
            if time.monotonic() > deadline:
                raise Stuck(f"not within {seconds:g} s: {what}\n{self.daemon.tail()}")
            self.rest(0.05)

    def group(self) -> GroupView:
        """Return the daemons' consumer group as the broker sees it."""
        if self._admin is None:
            self._admin = KafkaAdminClient(bootstrap_servers=self.at_broker.bootstrap_servers)
        return view_group(self._admin, self.at_broker.group_id)

    def is_shared(self) -> bool:
        """Tell whether all daemons have their part of the partitions."""
        view = self.group()
        parts = [len(partitions) for partitions in view.members.values()]
        return view.stable and parts == [PARTITIONS // len(self.daemons)] * len(self.daemons)

    def settle(self) -> Outcome:
        """Wait until the feeder has ended and the group has everything, stop, and return what is there."""
        try:
            self.wait(self.feeder.done, "the stream has been learnt", 600.0)
            self.wait(self._all_committed, "the group's offsets are at the log's ends", COMMIT_SECONDS)
        finally:
            self.stop()
        return read_outcome(self.feeder.produced, self.directories, self.at_broker)

    def stop(self) -> None:
        """Stop the daemons; idempotent."""
        for daemon in self.daemons:
            daemon.stop()
        for watch in self._watches:
            watch.close()
        if self._admin is not None:
            self._admin.close()
            self._admin = None

    def _all_committed(self) -> bool:
        return all(offset == end for offset, end in committed_offsets(self.at_broker).values())


def _daemon_settings(state: Path, weights: Path, source: KafkaSettings) -> dict[str, Any]:
    return {
        "state_directory": str(state),
        "backbone": {
            "name": BACKBONE,
            "weights": str(weights),
            "image_size": PIXELS,
            "device": "cpu",
            "dtype": "float32",
            "threads": 1,
        },
        "streams": {
            STREAM: {
                "source": source.model_dump(mode="json"),
                "learner": LEARNER,
                "holdout_fraction": HOLDOUT_FRACTION,
                "trigger": {
                    "min_samples_per_class": TRAIN,
                    "quiet_seconds": NEVER,
                    "max_wait_seconds": NEVER,
                    "max_new_classes": CLASSES_PER_GROUP,
                },
                # What is shown is what survives, not whether random weights tell classes apart.
                "gate": {"max_accuracy_drop": 1.0, "max_forgetting": 1.0},
                # All of them are compared at the end.
                "keep_generations": 1000,
            }
        },
        "serving": {"port": 0},
        "trainer": {"threads": 1, "niceness": 0},
        "log": {"format": "json"},
    }
