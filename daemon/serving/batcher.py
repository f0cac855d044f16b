"""Dynamic batching: one thread computes for all streams, so the device never sees two calls at once."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor

from cl_engine.learners.base import Prediction
from daemon.errors import Overloaded, RequestTimeout
from daemon.metrics import Metrics
from daemon.serving.slot import Lease
from daemon.settings import ServingSettings

log = structlog.get_logger(__name__)

# Longest that the thread sleeps, so that its heartbeat shows it is alive when there is no work.
_HEARTBEAT_SECONDS = 1.0


@dataclass(frozen=True, eq=False)
class Waiting:
    """A request in the queue.

    Attributes:
        lease: what it is computed on; the batcher's from `submit` on.
        inputs: (n, ...), rows of one shape.
        arrived: monotonic seconds.
        future: gets the prediction for the n rows.
    """

    lease: Lease
    inputs: Tensor
    arrived: float
    future: Future[Prediction]

    @property
    def rows(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    def fits_with(self, other: Waiting) -> bool:
        """Whether both can be rows of one tensor on one generation."""
        return self.lease.key == other.lease.key and self.inputs.shape[1:] == other.inputs.shape[1:]


def choose_batch(
    waiting: Iterable[Waiting], now: float, max_rows: int, max_delay: float
) -> tuple[Sequence[Waiting], float]:
    """Choose what to compute next.

    The oldest request decides the generation; younger ones of the same generation join it in order of
    arrival while the rows fit. A request with more than `max_rows` rows makes a batch alone.

    Args:
        waiting: requests by arrival, at least one.
        now: monotonic seconds.
        max_rows: rows of a full batch.
        max_delay: seconds that the oldest request waits for the batch to fill.

    Returns:
        The batch and 0, or an empty batch and the seconds for which to wait for more.
    """
    requests = iter(waiting)
    head = next(requests)
    batch, rows = [head], head.rows
    full = rows >= max_rows
    for request in requests:
        if full:
            break
        if not request.fits_with(head):
            continue
        if rows + request.rows > max_rows:
            full = True
        else:
            batch.append(request)
            rows += request.rows
            full = rows >= max_rows
    left = head.arrived + max_delay - now
    return ([], left) if left > 0 and not full else (batch, 0.0)


def predict_rows(lease: Lease, inputs: Tensor, max_rows: int) -> Prediction:
    """Compute any number of rows in steps of at most `max_rows`; the result is on the CPU."""
    with torch.inference_mode():
        parts = [
            lease.servable.predict(inputs[start : start + max_rows])
            for start in range(0, len(inputs), max_rows)
        ]
        if len(parts) == 1:
            part = parts[0]
            return Prediction(part.scores.cpu(), part.class_ids.cpu(), part.unknown.cpu())
        return Prediction(
            scores=torch.cat([part.scores for part in parts]).cpu(),
            class_ids=torch.cat([part.class_ids for part in parts]).cpu(),
            unknown=torch.cat([part.unknown for part in parts]).cpu(),
        )


class Batcher:
    """The owner of the serving thread.

    Attributes:
        heartbeat: monotonic seconds of the thread's last turn; stale while a batch is computed.

    Args:
        settings: batch size and delay, queue bound and timeout.
        metrics: where queue times and batch sizes are shown.
    """

    def __init__(self, settings: ServingSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._condition = threading.Condition()
        self._queue: deque[Waiting] = deque()
        self._rows = 0
        self._computing = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="serving-batcher", daemon=True)
        self.heartbeat = time.monotonic()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, lease: Lease, inputs: Tensor) -> Future[Prediction]:
        """Queue a request and return at once.

        The lease is the batcher's from here on, also when this raises: it is released as soon as the
        future is settled. Cancelling the future takes a request that still waits out of the queue.

        Args:
            lease: the generation to compute on.
            inputs: decoded inputs (n, ...), n at least 1.

        Raises:
            Overloaded: the queue is full, or the batcher is stopping.
            ValueError: there are no rows.
        """
        waiting = Waiting(lease, inputs, time.monotonic(), Future())
        try:
            self._enqueue(waiting)
        except BaseException:
            lease.release()
            raise
        return waiting.future

    def _enqueue(self, waiting: Waiting) -> None:
        if waiting.rows == 0:
            raise ValueError("inputs has no rows: submit at least one")
        with self._condition:
            if self._stopping or not self._thread.is_alive():
                raise Overloaded("the service is stopping: send the request again, to another instance")
            if self._queue and self._rows + waiting.rows > self._settings.max_queue:
                raise Overloaded(
                    f"{self._rows} inputs are waiting already and serving.max_queue is "
                    f"{self._settings.max_queue}: send the request again later"
                )
            self._queue.append(waiting)
            self._rows += waiting.rows
            self._condition.notify_all()

    def drain(self, timeout: float) -> bool:
        """Wait until nothing waits and nothing is computed, for at most `timeout` seconds.

        Returns:
            Whether that came true; requests that arrive meanwhile are still taken.
        """
        with self._condition:
            return self._condition.wait_for(lambda: not self._queue and not self._computing, timeout)

    def stop(self) -> None:
        """Take no more requests; what still waits fails with `Overloaded`. Idempotent."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait for the thread to end after `stop`, for at most `timeout` seconds.

        Returns:
            Whether it ended.
        """
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- the thread
    def _run(self) -> None:
        while True:
            batch = self._next()
            if batch is None:
                break
            if batch:
                try:
                    self._compute(batch)
                finally:
                    with self._condition:
                        self._computing = False
                        self._condition.notify_all()
            # A batch in a local variable would keep its generation's tensors past the release.
            del batch
        with self._condition:
            left, self._rows = list(self._queue), 0
            self._queue.clear()
            self._condition.notify_all()
        for waiting in left:
            self._fail(waiting, Overloaded("the service stopped before the request was computed"))

    def _next(self) -> Sequence[Waiting] | None:
        """Wait for a batch; empty after a heartbeat without one, None once stopped."""
        settings = self._settings
        with self._condition:
            now = self.heartbeat = time.monotonic()
            if self._stopping:
                return None
            if not self._queue:
                self._condition.wait(_HEARTBEAT_SECONDS)
                return ()
            batch, left = choose_batch(
                self._queue, now, settings.max_batch_size, settings.max_batch_delay_seconds
            )
            if not batch:
                self._condition.wait(min(left, _HEARTBEAT_SECONDS))
                return ()
            chosen = {id(waiting) for waiting in batch}
            self._queue = deque(waiting for waiting in self._queue if id(waiting) not in chosen)
            self._rows -= sum(waiting.rows for waiting in batch)
            self._computing = True
            return batch

    def _compute(self, batch: Sequence[Waiting]) -> None:
        started = time.monotonic()
        running = [waiting for waiting in batch if self._admit(waiting, started)]
        if not running:
            return
        lease = running[0].lease
        rows = sum(waiting.rows for waiting in running)
        self._metrics.batch_size.labels(lease.stream).observe(rows)
        try:
            inputs = torch.cat([waiting.inputs for waiting in running])
            prediction = predict_rows(lease, inputs, self._settings.max_batch_size)
            assert len(prediction.class_ids) == rows, "predict must answer every row"
        except Exception as error:
            # Whatever one generation does, the requests of the others go on being served.
            log.exception(
                "batch.failed", stream=lease.stream, generation=lease.generation.number, inputs=rows
            )
            for waiting in running:
                self._fail(waiting, error)
            return
        start = 0
        for waiting in running:
            part = slice(start, start + waiting.rows)
            start += waiting.rows
            # Released first: whoever sees the answer may count on the generation being free.
            waiting.lease.release()
            waiting.future.set_result(
                Prediction(prediction.scores[part], prediction.class_ids[part], prediction.unknown[part])
            )

    def _admit(self, waiting: Waiting, now: float) -> bool:
        """Show how long a request waited; refuse it if nobody waits for it any more."""
        waited = now - waiting.arrived
        self._metrics.queue_duration.labels(waiting.lease.stream).observe(waited)
        if not waiting.future.set_running_or_notify_cancel():
            waiting.lease.release()
            return False
        if waited > self._settings.request_timeout_seconds:
            waiting.lease.release()
            waiting.future.set_exception(
                RequestTimeout(
                    f"the request waited {waited:.1f} s, serving.request_timeout_seconds is "
                    f"{self._settings.request_timeout_seconds:g}"
                )
            )
            return False
        return True

    @staticmethod
    def _fail(waiting: Waiting, error: Exception) -> None:
        waiting.lease.release()
        if waiting.future.running() or waiting.future.set_running_or_notify_cancel():
            waiting.future.set_exception(error)
