"""Names that producers and the parser share: media types, headers, the schema version."""

from __future__ import annotations

SCHEMA_VERSION = 1

CLASS_BATCH_JSON = "application/vnd.accrete.class-batch+json"
CLASS_BATCH_ARROW = "application/vnd.apache.arrow.stream"
CLOUDEVENT_JSON = "application/cloudevents+json"
CLOUDEVENT_PREFIX = "application/cloudevents"
TEXT = "text/plain"

# Headers of a raw message. `critical` lists names that the reader must understand, as JOSE's `crit`.
LABEL = "label"
CONTENT_TYPE = "content-type"
ID = "id"
SCHEMA_VERSION_HEADER = "schema-version"
CRITICAL = "critical"

# CloudEvents attributes in binary mode are headers with this prefix (Kafka protocol binding 1.0.2).
CLOUDEVENT_HEADER_PREFIX = "ce_"
CLOUDEVENT_SPEC_VERSION = "1.0"
CLOUDEVENT_TYPE = "accrete.sample.labelled.v1"


def media_type(content_type: str) -> str:
    """Return the type alone, lower case, without parameters: `Text/Plain; charset=utf-8` is `text/plain`."""
    return content_type.partition(";")[0].strip().lower()
