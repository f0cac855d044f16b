"""A consumer group as the broker sees it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition

OFFSETS_TOPIC = "__consumer_offsets"
# Of the keys in the offsets topic: the one of a group's metadata, written at each rebalance.
GROUP_METADATA_KEY = 2
# From this version on strings have their length as a variable-length integer, one more than it is.
COMPACT_STRINGS = 4


@dataclass(frozen=True)
class GroupView:
    """What a group looks like: its state, and each member's partitions."""

    state: str
    members: Mapping[str, frozenset[int]]

    @property
    def stable(self) -> bool:
        """Whether no rebalance is under way."""
        return self.state == "Stable"


def view_group(admin: KafkaAdminClient, group: str) -> GroupView:
    """Ask the group's coordinator."""
    found = admin.describe_groups([group])[group]
    members = {}
    for member in found["members"]:
        assigned = (member["member_assignment"] or {}).get("assigned_partitions", [])
        members[member["member_id"]] = frozenset(p for topic in assigned for p in topic["partitions"])
    return GroupView(found["group_state"], members)


def group_generations(address: str, group: str) -> list[int]:
    """Return the generation of every rebalance that the broker has written down, in order.

    The offsets topic must have one partition, as the tests' broker has it.
    """
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=None, exclude_internal_topics=False)
    try:
        place = TopicPartition(OFFSETS_TOPIC, 0)
        consumer.assign([place])
        consumer.seek_to_beginning(place)
        end = consumer.end_offsets([place])[place]
        generations: list[int] = []
        while consumer.position(place) < end:
            generations.extend(
                _generation(record.value)
                for record in consumer.poll(500).get(place, [])
                if record.value is not None and _is_metadata_of(record.key, group)
            )
        return generations
    finally:
        consumer.close()


def _is_metadata_of(key: bytes, group: str) -> bool:
    kind, length = struct.unpack_from(">hh", key)
    return kind == GROUP_METADATA_KEY and key[4 : 4 + length] == group.encode()


def _generation(value: bytes) -> int:
    """Read the generation from a group's metadata: version, protocol type, generation, and more."""
    (version,) = struct.unpack_from(">h", value)
    if version >= COMPACT_STRINGS:
        after = 3 + value[2] - 1
    else:
        (length,) = struct.unpack_from(">h", value, 2)
        after = 4 + length
    (generation,) = struct.unpack_from(">i", value, after)
    return int(generation)
