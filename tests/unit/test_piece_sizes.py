"""Rows of one transaction in few statements."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.sqlite import max_parameters, sqlite_engine
from daemon.state.ingest import piece_sizes


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(1, 5000))
def test_every_row_is_in_one_statement_that_is_small_enough(rows: int, largest: int) -> None:
    """Of each size but the largest there is one statement at most, so that few sizes are prepared."""
    sizes = list(piece_sizes(rows, largest))
    assert sum(sizes) == rows
    assert all(0 < size <= largest for size in sizes)
    smaller = [size for size in sizes if size < max(sizes)]
    assert len(set(smaller)) == len(smaller)


def test_the_databases_own_bound_is_asked_for(tmp_path: Path) -> None:
    """An old SQLite, or one built with another bound, refuses a statement with more parameters."""
    engine = sqlite_engine(tmp_path / "some.db")
    with engine.begin() as connection:
        marks = ", ".join("?" * max_parameters(connection))
        assert connection.exec_driver_sql(f"SELECT 1 WHERE 1 IN ({marks})", (1,) * max_parameters(connection))
        connection.connection.driver_connection.setlimit(9, 20)  # type: ignore[union-attr]
        assert max_parameters(connection) == 20
    engine.dispose()
