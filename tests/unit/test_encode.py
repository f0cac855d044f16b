"""Building messages."""

from __future__ import annotations

import pytest

from daemon.messages.encode import arrow_class_batch, json_class_batch


def test_an_empty_class_batch_is_a_mistake() -> None:
    """The encoder refuses what the parser would."""
    for build in (json_class_batch, arrow_class_batch):
        with pytest.raises(ValueError, match="at least one sample"):
            build("cat", "image/png", [])
