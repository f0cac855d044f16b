"""The JSON Schemas that are shipped: up to date, complete, and to be had from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from daemon.events.kinds import EventKind
from daemon.messages.encode import Item, json_class_batch, structured_event
from daemon.messages.json_schemas import SUFFIX, json_schemas, schema_text, shipped_schemas
from tests.support.ingest import image
from tests.unit.test_cli import accrete


def test_the_shipped_schemas_are_those_of_the_models() -> None:
    """After a change of a model: `accrete schemas --write daemon/messages/schemas`."""
    expected = {name.removesuffix(SUFFIX): schema_text(schema) for name, schema in json_schemas().items()}
    assert shipped_schemas() == expected


def test_every_format_has_one() -> None:
    """What producers send, what commands look like, and the data of each event."""
    events = {f"event.{kind.value}" for kind in EventKind}
    assert shipped_schemas().keys() == {"class-batch", "cloudevent", "control", "prediction"} | events


@pytest.mark.parametrize("name", sorted(shipped_schemas()))
def test_every_field_is_described(name: str) -> None:
    """A reader of the schema alone knows what each field means; commands are told apart by `command`."""
    schema = json.loads(shipped_schemas()[name])
    described = [schema, *schema.get("$defs", {}).values()]
    for part in described:
        for field, content in part.get("properties", {}).items():
            assert "description" in content or field == "command", (name, field)


def test_the_command_line_lists_and_prints_them(tmp_path: Path) -> None:
    """One by name, all into a directory; an unknown name is a mistake."""
    assert set(accrete("schemas").output.split()) == set(shipped_schemas())
    assert accrete("schemas", "control").output == shipped_schemas()["control"]
    accrete("schemas", "--write", tmp_path / "out")
    written = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert written == {f"{name}{SUFFIX}": text for name, text in shipped_schemas().items()}
    unknown = accrete("schemas", "nothing")
    assert unknown.exit_code == 1
    assert "class-batch" in unknown.output


def test_json_schemas_describe_what_the_encoders_make() -> None:
    """The published schemas name the required fields and say that payloads are base64."""
    schemas = json_schemas()
    made = json.loads(json_class_batch("cat", "image/png", [Item(image(), "x")]).value or b"")
    schema = schemas["class-batch.schema.json"]
    assert set(schema["required"]) <= made.keys() <= schema["properties"].keys()
    data = schema["$defs"]["ClassBatchSample"]["properties"]["data"]
    assert (data["type"], data["contentEncoding"]) == ("string", "base64")
    event_made = json.loads(
        structured_event("cat", "image/png", image(), source="/", event_id="1").value or b""
    )
    event_schema = schemas["cloudevent.schema.json"]
    assert set(event_schema["required"]) <= event_made.keys() <= event_schema["properties"].keys()
