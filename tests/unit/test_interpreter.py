"""The collector's settings of a running daemon."""

from __future__ import annotations

import gc

from daemon.interpreter import YOUNG_OBJECTS, keep_what_is_there, release_what_is_there


def test_what_was_kept_is_let_go_again() -> None:
    """A daemon that has stopped leaves the collector as it was, for whatever else runs in the process."""
    before = gc.get_threshold()
    keep_what_is_there()
    try:
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] == YOUNG_OBJECTS
    finally:
        release_what_is_there()
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
