"""Whether an Arrow IPC message is compressed, told without decompressing it.

pyarrow decompresses whatever it reads and has no limit to set: 30 KB can become gigabytes, and the
same record again after the restart. Arrow says in the message's flatbuffer whether the body is
compressed (format/Message.fbs), which pyarrow does not show; it has verified the flatbuffer before it
hands it out.
"""

from __future__ import annotations

import struct

# Slots of the tables in Message.fbs.
_MESSAGE_HEADER = 2
_RECORD_BATCH_COMPRESSION = 3
_DICTIONARY_BATCH_DATA = 1


def is_compressed(metadata: bytes, kind: str) -> bool:
    """Tell whether a message's body is compressed.

    Args:
        metadata: the message's flatbuffer, verified.
        kind: `pyarrow.ipc.Message.type`.
    """
    if kind not in {"record batch", "dictionary"}:
        return False
    (root,) = struct.unpack_from("<I", metadata, 0)
    table = _table(metadata, root, _MESSAGE_HEADER)
    if kind == "dictionary" and table is not None:
        table = _table(metadata, table, _DICTIONARY_BATCH_DATA)
    return table is not None and _field(metadata, table, _RECORD_BATCH_COMPRESSION) is not None


def _field(buffer: bytes, table: int, slot: int) -> int | None:
    """Return where a table's field lies, None if it is absent."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, vtable)
    entry = 4 + 2 * slot
    (offset,) = struct.unpack_from("<H", buffer, vtable + entry) if entry < size else (0,)
    return table + offset if offset else None


def _table(buffer: bytes, table: int, slot: int) -> int | None:
    """Follow a field that refers to another table."""
    field = _field(buffer, table, slot)
    return None if field is None else field + struct.unpack_from("<I", buffer, field)[0]
