"""JSON Schemas of the messages, generated from the models and shipped beside them."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from daemon.messages.control import COMMANDS
from daemon.messages.events import FACTS
from daemon.messages.models import ClassBatch, CloudEvent
from daemon.messages.predictions import TopicPrediction

SUFFIX = ".schema.json"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of each JSON format and of each event's data, by file name."""
    models: dict[str, dict[str, Any]] = {
        "class-batch": ClassBatch.model_json_schema(),
        "cloudevent": CloudEvent.model_json_schema(),
        "prediction": TopicPrediction.model_json_schema(mode="serialization"),
        "control": {"title": "Command"} | COMMANDS.json_schema(),
    }
    models |= {f"event.{fact.kind.value}": fact.model_json_schema(mode="serialization") for fact in FACTS}
    return {f"{name}{SUFFIX}": {"$schema": DIALECT} | schema for name, schema in models.items()}


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as its file has it."""
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def shipped_schemas() -> dict[str, str]:
    """Return the text of the schema files of this installation, by name without the ending."""
    directory = resources.files("daemon.messages").joinpath("schemas")
    return {
        file.name.removesuffix(SUFFIX): file.read_text(encoding="utf-8")
        for file in sorted(directory.iterdir(), key=lambda entry: entry.name)
        if file.name.endswith(SUFFIX)
    }
