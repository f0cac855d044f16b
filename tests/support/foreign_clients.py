"""Producers and consumers that share no code with ours: kcat, confluent-kafka, Kafka's console producer."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.support.kafka_broker import LOG_SETTINGS
from tests.support.kafka_libs import find_classpath
from tests.support.kcat_binary import Kcat

WAIT_SECONDS = 30.0
# Between two of kcat's headers; a comma within a value is not followed by a header's name.
_NEXT_HEADER = re.compile(r",(?=[a-z_-]+=)")


@dataclass(frozen=True)
class Found:
    """One message as a consumer sees it."""

    value: bytes | None
    headers: Mapping[str, bytes] = field(default_factory=dict)


class ForeignProducer(Protocol):
    """Sends one message and waits until it is there."""

    def produce(self, topic: str, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        """Send a message; None is a tombstone."""
        ...


class ForeignConsumer(Protocol):
    """Reads a topic of one partition from its start."""

    def consume(self, topic: str) -> list[Found]:
        """Return what is there now."""
        ...


class KcatClient:
    """kcat: every message is a file of its own, so that its bytes stay as they are."""

    def __init__(self, kcat: Kcat, address: str, directory: Path) -> None:
        self._kcat, self._address, self._directory = kcat, address, directory

    def produce(self, topic: str, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        """Send a message."""
        arguments = ["-P", "-b", self._address, "-t", topic]
        for name, content in headers.items():
            arguments += ["-H", f"{name}={content.decode()}"]
        if value is None:
            # A line of a key and nothing: -Z turns the nothing into no value at all.
            self._kcat.run(*arguments, "-Z", "-K", ":", stdin=b"key:\n")
            return
        payload = self._directory / "payload"
        payload.write_bytes(value)
        self._kcat.run(*arguments, "-k", "key", str(payload))

    def consume(self, topic: str) -> list[Found]:
        """Return what is there now."""
        arguments = ["-C", "-q", "-e", "-b", self._address, "-t", topic, "-o", "beginning", "-f"]
        values = self._kcat.run(*arguments, "%R%s")
        headers = self._kcat.run(*arguments, "%h\n").decode().splitlines()
        found, at = [], 0
        for line in headers:
            (length,) = struct.unpack_from(">i", values, at)
            at += 4
            value = None if length < 0 else values[at : at + length]
            at += max(0, length)
            pairs = (pair.split("=", 1) for pair in _NEXT_HEADER.split(line) if pair)
            found.append(Found(value, {name: content.encode() for name, content in pairs}))
        assert at == len(values)
        return found


class ConfluentClient:
    """confluent-kafka, which stands on librdkafka."""

    def __init__(self, address: str) -> None:
        self._address = address

    def produce(self, topic: str, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        """Send a message."""
        failures: list[str] = []
        producer = Producer({"bootstrap.servers": self._address})
        producer.produce(
            topic,
            value=value,
            key=b"key",
            headers=list(headers.items()),
            on_delivery=lambda error, _: failures.append(str(error)) if error is not None else None,
        )
        assert producer.flush(WAIT_SECONDS) == 0
        assert not failures, failures

    def consume(self, topic: str) -> list[Found]:
        """Return what is there now."""
        consumer = Consumer(
            {"bootstrap.servers": self._address, "group.id": "foreign", "enable.auto.commit": False}
        )
        try:
            place = TopicPartition(topic, 0, 0)
            start, end = consumer.get_watermark_offsets(place, timeout=WAIT_SECONDS)
            consumer.assign([TopicPartition(topic, 0, start)])
            found: list[Found] = []
            while len(found) < end - start:
                message = consumer.poll(WAIT_SECONDS)
                assert message is not None, f"{topic}: {len(found)} of {end - start} messages came"
                assert message.error() is None, message.error()
                headers = {name: content or b"" for name, content in message.headers() or ()}
                found.append(Found(message.value(), headers))
            return found
        finally:
            consumer.close()


class ConsoleProducer:
    """Apache Kafka's console producer: a line of text is a message."""

    TOMBSTONE = "NOTHING"

    def __init__(self, address: str) -> None:
        self._address = address

    def produce(self, topic: str, value: bytes | None, headers: Mapping[str, bytes]) -> None:
        """Send a message.

        Raises:
            ValueError: its value is no line of text.
        """
        text = self.TOMBSTONE if value is None else value.decode("utf-8")
        if "\n" in text:
            raise ValueError("the console producer sends lines: a line break would end the message")
        # A CloudEvent's source may hold colons, so the usual separator of name and value is another one.
        head = ",".join(f"{name}={content.decode()}" for name, content in headers.items())
        command = ["java", "-XX:TieredStopAtLevel=1", f"-Dlog4j2.configurationFile={LOG_SETTINGS}"]
        command += ["-cp", find_classpath(), "org.apache.kafka.tools.ConsoleProducer"]
        command += ["--bootstrap-server", self._address, "--topic", topic, "--sync"]
        for setting in (
            "parse.headers=true",
            "headers.key.separator==",
            f"null.marker={self.TOMBSTONE}",
        ):
            command += ["--reader-property", setting]
        done = subprocess.run(
            command, input=f"{head}\t{text}\n".encode(), capture_output=True, check=False, timeout=60
        )
        said = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == 0, said
        assert "ERROR" not in said, said
