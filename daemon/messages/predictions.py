"""Answers to the requests of a topic."""

from __future__ import annotations

from typing import Literal

from daemon.messages.formats import CONTENT_TYPE, ID
from daemon.messages.models import Format
from daemon.sources.base import Message, Record


class Candidate(Format):
    """One class that the input may be of."""

    label: str
    """Its label."""
    class_id: int
    """Its permanent id."""
    score: float
    """The higher, the likelier; comparable within one answer."""


class Answer(Format):
    """What a generation says about an input."""

    label: str
    """Label of the likeliest class."""
    class_id: int
    """Its permanent id."""
    score: float
    """Its score."""
    unknown: float
    """How far the input is from every class, from 0 to 1."""
    top: list[Candidate]
    """The likeliest classes, best first."""
    generation: str
    """Digest of the generation that answered."""
    generation_number: int
    """Its number."""


class TopicPrediction(Format):
    """The answer to one request: a prediction or an error, never both."""

    schema_version: Literal[1] = 1
    """Version of this format."""
    stream: str
    """The stream that was asked."""
    request_topic: str
    """Where the request is: its topic,"""
    request_partition: int
    """partition"""
    request_offset: int
    """and offset."""
    request_id: str | None
    """The request's header `id`, if it has one."""
    prediction: Answer | None = None
    """What the live generation says."""
    error: str | None = None
    """Why there is no prediction."""


def prediction_message(
    record: Record, stream: str, *, prediction: Answer | None = None, error: str | None = None
) -> Message:
    """Build the answer to a request; its key is the request's, its idempotency key the request's place."""
    request_id = record.headers.get(ID)
    answer = TopicPrediction(
        stream=stream,
        request_topic=record.topic,
        request_partition=record.partition,
        request_offset=record.offset,
        request_id=None if request_id is None else request_id.decode("utf-8", "replace"),
        prediction=prediction,
        error=error,
    )
    headers = {CONTENT_TYPE: b"application/json"} | ({} if request_id is None else {ID: request_id})
    place = f"{record.topic}/{record.partition}/{record.offset}"
    return Message(answer.model_dump_json().encode(), record.key, headers, idempotency_key=place)
