"""Streams from and to Apache Kafka."""

from daemon.sources.kafka.consumer import KafkaSource
from daemon.sources.kafka.facts import KafkaFacts
from daemon.sources.kafka.producer import KafkaSink

__all__ = ["KafkaFacts", "KafkaSink", "KafkaSource"]
