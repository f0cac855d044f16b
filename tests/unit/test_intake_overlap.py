"""What intake does while a transaction waits for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from daemon.messages.encode import Item, raw_message
from daemon.sources.base import Place, Record
from daemon.state.base import StoreResult
from tests.support.ingest import TOPIC, FlakySink, ScriptedSource, broken_pixels, image, record
from tests.support.intake_bench import Workbench, good, log_of

PLACE = Place(TOPIC, 0)


class TestOverlap:
    def test_the_next_poll_is_parsed_while_a_transaction_runs(
        self, bench: Workbench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk and the processor work at the same time; the outcomes keep their order."""
        polled_again, overlapped = threading.Event(), []

        class NotingSource(ScriptedSource):
            def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
                if len(self.script) == 1:
                    polled_again.set()
                return super().poll(timeout, max_records)

        store = bench.state.store

        def slow_store(*arguments: Any) -> StoreResult:
            overlapped.append(polled_again.wait(10))
            return store(*arguments)

        monkeypatch.setattr(bench.state, "store", slow_store)
        source = NotingSource([[record(good(0), 0)], [record(good(1), 1)]])
        intake = bench.run(source)
        assert (intake.failed, overlapped) == (None, [True, True])
        assert source.commits == [{PLACE: 1}, {PLACE: 2}]

    def test_a_transaction_takes_in_all_that_was_parsed_meanwhile(
        self, bench: Workbench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slow disk has few large transactions to wait for, not many small ones."""
        # The log is made anew at last, and begins lower: where it goes on is the last word on the offset.
        source = ScriptedSource([[record(good(n), offset)] for n, offset in enumerate((4, 5, 6, 2))])
        store, sizes = bench.state.store, []

        def slow_store(stream: str, arrived: Sequence[Any], *others: Any) -> StoreResult:
            sizes.append(len(arrived))
            while len(sizes) == 1 and source.script:
                time.sleep(0.001)
            return store(stream, arrived, *others)

        monkeypatch.setattr(bench.state, "store", slow_store)
        intake = bench.run(source)
        assert (intake.failed, sizes) == (None, [1, 3])
        assert source.commits == [{PLACE: 5}, {PLACE: 3}]

    @pytest.mark.parametrize("bound", ["_HELD_RECORDS", "_HELD_BYTES"])
    def test_what_waits_for_a_transaction_is_bounded(
        self, bench: Workbench, monkeypatch: pytest.MonkeyPatch, bound: str
    ) -> None:
        """Beyond the bound nothing is polled until the transaction has ended."""
        monkeypatch.setattr(f"daemon.intake.{bound}", 2 if bound == "_HELD_RECORDS" else 2 * len(image(1)))
        too_far, reached = threading.Event(), []

        class NotingSource(ScriptedSource):
            def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
                if len(self.script) == 2:
                    too_far.set()
                return super().poll(timeout, max_records)

        source, store = NotingSource([[record(good(n), n)] for n in range(5)]), bench.state.store

        def slow_store(*arguments: Any) -> StoreResult:
            while len(source.script) > 2:
                time.sleep(0.001)
            reached.append(too_far.wait(0.2))
            return store(*arguments)

        monkeypatch.setattr(bench.state, "store", slow_store)
        intake = bench.run(source)
        assert intake.failed is None
        assert not reached[0]
        assert bench.state.counts("s").stored == 5

    def test_a_stop_waits_for_the_transaction_under_way(self, bench: Workbench) -> None:
        """What is being stored is committed and counted before the source is closed."""

        class LastSource(ScriptedSource):
            def poll(self, timeout: float, max_records: int) -> Sequence[Record]:
                intake.stop()
                return super().poll(timeout, max_records)

        source = LastSource([log_of([good(0)])])
        intake = bench.intake(source, FlakySink())
        intake.start()
        assert intake.join(30)
        assert source.commits == [{PLACE: 1}]
        assert bench.samples()["stored"] == 1

    def test_an_image_that_is_whole_but_for_its_pixels_is_left_to_the_session(self, bench: Workbench) -> None:
        """Only a decode could tell, and that is what intake saves."""
        source = ScriptedSource([log_of([raw_message("cat", "image/png", Item(broken_pixels()))])])
        bench.run(source)
        assert bench.samples() == {"stored": 1, "duplicate": 0, "dead_lettered": 0}
