"""The topics of a stream, and making them.

`control` is not compacted. Its messages are commands (flush, pause, promote, forget), each to be
carried out once and in order; compaction keeps the last message of a key and would drop a `forget`
behind a later `flush`. Kept for a month uncompacted in one partition, the topic is at the same time the
record of who asked for what, and a daemon that was down carries out what it missed. `events` is not
compacted either: each one is news, not a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from kafka import KafkaAdminClient
from kafka import errors as kafka_errors

from daemon.errors import MessageRefused, SourceUnavailable
from daemon.messages.dead_letter import dead_letter_topic
from daemon.settings import KafkaSource
from daemon.sources.kafka.security import connection_options, describe_failure

DAY_MS = 24 * 60 * 60 * 1000
# A dead letter carries headers beside the original bytes, and may compress worse than they did.
DEAD_LETTER_ROOM = 2


@dataclass(frozen=True)
class TopicPlan:
    """A topic to be made.

    Attributes:
        name: the topic's name.
        purpose: what it is for, in a few words.
        partitions: 1 where the order of all messages matters.
        configs: Kafka's topic settings, beside the number of in-sync replicas.
    """

    name: str
    purpose: str
    partitions: int = 1
    configs: Mapping[str, str] = field(default_factory=dict)


class TopicOutcome(StrEnum):
    """What became of a planned topic."""

    CREATED = "created"
    EXISTED = "existed"


def plan_topics(
    settings: KafkaSource,
    *,
    events: str | None = None,
    control: str | None = None,
    requests: tuple[str, str] | None = None,
    partitions: int = 1,
    max_message_bytes: int = 32 * 2**20,
) -> list[TopicPlan]:
    """Plan every topic of a stream.

    Args:
        settings: names the labelled topic, from which the others' names are derived.
        events: name of that topic, where it is not derived.
        control: the same.
        requests: the same, of the requests and of the predictions.
        partitions: of the labelled, request and prediction topics; samples of one partition stay in order.
        max_message_bytes: largest message of the labelled and request topics.
    """
    topic = settings.topic

    def config(days: int, max_bytes: int = 2**20) -> dict[str, str]:
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(days * DAY_MS),
            "max.message.bytes": str(max_bytes),
        }

    asked, answered = requests or (f"{topic}.requests", f"{topic}.predictions")
    return [
        # Long enough for a daemon that is down over a holiday; what is consumed is in the state.
        TopicPlan(topic, "labelled samples", partitions, config(14, max_message_bytes)),
        TopicPlan(
            dead_letter_topic(topic), "dead letters", 1, config(90, max_message_bytes * DEAD_LETTER_ROOM)
        ),
        TopicPlan(control or f"{topic}.control", "commands, in order, not compacted", 1, config(30)),
        TopicPlan(events or f"{topic}.events", "sessions, gates and swaps", 1, config(30)),
        # Nobody waits a day for an answer.
        TopicPlan(asked, "inputs to classify", partitions, config(1, max_message_bytes)),
        TopicPlan(answered, "answers", partitions, config(7)),
    ]


def create_topics(
    settings: KafkaSource, plans: Sequence[TopicPlan], *, replication: int
) -> dict[str, TopicOutcome]:
    """Make the topics that do not exist; those that do are left as they are.

    Args:
        settings: the cluster.
        plans: what to make.
        replication: copies of each partition; all but one of them must confirm a message.

    Raises:
        SourceUnavailable: no broker answers.
        MessageRefused: the cluster refuses a topic; the message names it and the reason.
    """
    in_sync = {"min.insync.replicas": str(max(1, replication - 1))}
    wanted = {
        plan.name: {
            "num_partitions": plan.partitions,
            "replication_factor": replication,
            "configs": {**plan.configs, **in_sync},
        }
        for plan in plans
    }
    try:
        admin = KafkaAdminClient(**connection_options(settings))
        try:
            answer = admin.create_topics(wanted, raise_errors=False)
            outcomes = {topic["name"]: _outcome(topic) for topic in answer["topics"]}
            admin.wait_for_topics(list(outcomes))
        finally:
            admin.close()
    except (kafka_errors.KafkaError, OSError) as error:
        raise SourceUnavailable(f"topics not created: {describe_failure(settings, error)}") from error
    return outcomes


def _outcome(topic: Mapping[str, object]) -> TopicOutcome:
    error = kafka_errors.for_code(topic["error_code"])
    if error is kafka_errors.NoError:
        return TopicOutcome.CREATED
    if error is kafka_errors.TopicAlreadyExistsError:
        return TopicOutcome.EXISTED
    raise MessageRefused(
        f"topic {topic['name']}: {error.__name__}: {topic.get('error_message') or 'no reason given'}; "
        "check the replication factor against the number of brokers, and the user's CREATE right"
    )
