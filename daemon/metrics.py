"""Every metric the daemon exports, in one place.

Rules: prefix `accrete_`, base units, `_total` on counters, no unbounded label, every label
combination initialised at the start, counters that reconcile.
"""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from daemon.errors import DeadLetterReason
from daemon.events.kinds import EventKind

RECORD_OUTCOMES = ("accepted", "duplicate", "dead_lettered", "tombstone")
SAMPLE_OUTCOMES = ("stored", "duplicate", "dead_lettered")
SESSION_OUTCOMES = ("promoted", "rejected", "failed")
SWAP_OUTCOMES = ("promoted", "rolled_back", "failed")
ACCURACY_KINDS = ("last", "average", "min_class")
REQUEST_OUTCOMES = ("ok", "bad_request", "not_ready", "overloaded", "timeout", "error")
ENDPOINTS = ("infer", "classify", "topic")
CLASS_STATES = ("live", "pending", "forgetting", "forgotten")
BUFFER_STATES = ("ready", "waiting")
# `dead_lettered` are bad or unsupported, `failed` were carried out and did not succeed.
COMMAND_OUTCOMES = ("done", "failed", "duplicate", "dead_lettered")
TRANSACTION_OUTCOMES = ("committed", "aborted", "fenced")
ID_KINDS = ("command", "message_key")
SWAP_PHASES = ("build", "warmup", "publish", "drain")

# A request on one CPU core takes tens of milliseconds, on a GPU one to five.
LATENCY_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
# A pointer publish is microseconds; anything above a millisecond is a fault worth seeing.
PAUSE_BUCKETS = (1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1)
SESSION_BUCKETS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
SWAP_BUCKETS = (1e-5, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """The daemon's instruments on one registry.

    Attributes are the instruments; all are labelled by `stream` unless they concern the process.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        self.build = Info("accrete_build", "Versions of the running daemon.", registry=r)
        self.records_consumed = Counter(
            "accrete_records_consumed",
            "Records taken from the stream; the outcomes add up to all of them.",
            ("stream", "outcome"),
            registry=r,
        )
        self.samples = Counter(
            "accrete_samples",
            "Samples found in consumed records; the outcomes add up to all of them.",
            ("stream", "outcome"),
            registry=r,
        )
        self.samples_withdrawn = Counter(
            "accrete_samples_withdrawn",
            "Samples counted as stored that a session could not decode: they are dead letters now.",
            ("stream",),
            registry=r,
        )
        self.dead_letters = Counter(
            "accrete_dead_letters",
            "Records, samples and commands sent to the dead-letter topic, by reason.",
            ("stream", "reason"),
            registry=r,
        )
        self.lag_records = Gauge(
            "accrete_consumer_lag_records", "Records not consumed yet.", ("stream", "partition"), registry=r
        )
        self.lag_seconds = Gauge(
            "accrete_consumer_lag_seconds",
            "Age of the oldest record not consumed yet, 0 if there is none.",
            ("stream", "partition"),
            registry=r,
        )
        self.last_poll = Gauge(
            "accrete_consumer_last_poll_timestamp_seconds",
            "When the source was last polled.",
            ("stream",),
            registry=r,
        )
        self.source_up = Gauge(
            "accrete_source_up", "1 while the source can be reached, else 0.", ("stream",), registry=r
        )
        self.consumer_paused = Gauge(
            "accrete_consumer_paused", "1 while intake is paused by an operator.", ("stream",), registry=r
        )
        self.group_poll = Gauge(
            "accrete_consumer_group_poll_timestamp_seconds",
            "When the thread that keeps the membership of the consumer group last polled.",
            ("stream",),
            registry=r,
        )
        self.fetch_paused = Gauge(
            "accrete_consumer_fetch_paused",
            "1 while a Kafka source fetches nothing, by reason: intake asked for it, or its queue is full.",
            ("stream", "reason"),
            registry=r,
        )
        self.consumer_position = Gauge(
            "accrete_consumer_position",
            "Next offset to be handed to intake, of each partition assigned to this member.",
            ("stream", "partition"),
            registry=r,
        )
        self.partition_stalled = Gauge(
            "accrete_consumer_partition_stalled",
            "1 for a partition that is assigned, not paused and behind, and gives no record for too long.",
            ("stream", "partition"),
            registry=r,
        )
        self.queued_records = Gauge(
            "accrete_consumer_queue_records", "Records fetched ahead of intake.", ("stream",), registry=r
        )
        self.queued_bytes = Gauge(
            "accrete_consumer_queue_bytes", "Bytes fetched ahead of intake.", ("stream",), registry=r
        )
        self.rebalances = Counter(
            "accrete_consumer_rebalances",
            "Times that the group gave partitions to this member or took some away, by kind.",
            ("stream", "kind"),
            registry=r,
        )
        self.stale_records = Counter(
            "accrete_consumer_stale_records",
            "Fetched records dropped because their partition had moved meanwhile; its owner reads them.",
            ("stream",),
            registry=r,
        )
        self.commit_failures = Counter(
            "accrete_consumer_commit_failures",
            "Offset commits that the group refused or that did not arrive; the state's offsets stand.",
            ("stream",),
            registry=r,
        )
        self.gap_records = Counter(
            "accrete_consumer_gap_records",
            "Records that retention removed before they were read, skipped by on_gap.",
            ("stream",),
            registry=r,
        )
        self.buffered_samples = Gauge(
            "accrete_buffered_samples",
            "Training samples not learnt yet: ready (its class has enough) or waiting.",
            ("stream", "state"),
            registry=r,
        )
        self.trigger_decisions = Counter(
            "accrete_trigger_decisions",
            "Recorded trigger decisions.",
            ("stream", "policy", "fired"),
            registry=r,
        )
        self.sessions = Counter(
            "accrete_sessions", "Sessions that ended, by outcome.", ("stream", "outcome"), registry=r
        )
        self.session_restarts = Counter(
            "accrete_session_restarts",
            "Sessions taken up again after a crash or a restart.",
            ("stream",),
            registry=r,
        )
        self.trainer_stalls = Counter(
            "accrete_trainer_stalls",
            "Trainer processes ended because they reported no progress for too long; the session is resumed.",
            ("stream",),
            registry=r,
        )
        self.classes_forgotten = Counter(
            "accrete_classes_forgotten",
            "Classes taken out of the live generation, with every sample of theirs.",
            ("stream",),
            registry=r,
        )
        self.session_duration = Histogram(
            "accrete_session_duration_seconds",
            "Wall time of a session from trigger to outcome.",
            ("stream",),
            buckets=SESSION_BUCKETS,
            registry=r,
        )
        self.session_running = Gauge(
            "accrete_session_running", "1 while a session runs.", ("stream",), registry=r
        )
        self.session_progress = Gauge(
            "accrete_session_progress_ratio",
            "Finished share of the running session, 0 while none runs.",
            ("stream",),
            registry=r,
        )
        self.classes = Gauge("accrete_classes", "Classes of the registry.", ("stream", "state"), registry=r)
        self.accuracy = Gauge(
            "accrete_accuracy_ratio",
            "Holdout accuracy of the live generation: last (A_T, mean over sessions after the last one), "
            "average (A_bar, mean of A_t over sessions) and min_class.",
            ("stream", "kind"),
            registry=r,
        )
        self.forgetting = Gauge(
            "accrete_forgetting_ratio",
            "Mean over earlier sessions i of max over t < T of a[t][i], minus a[T][i], on the holdout.",
            ("stream",),
            registry=r,
        )
        self.backward_transfer = Gauge(
            "accrete_backward_transfer_ratio",
            "Mean over earlier sessions i of a[T][i] minus a[i][i], on the holdout.",
            ("stream",),
            registry=r,
        )
        self.certificate_ok = Gauge(
            "accrete_certificate_ok",
            "1 if the live generation proved what its method promises about earlier sessions.",
            ("stream",),
            registry=r,
        )
        self.live_generation = Gauge(
            "accrete_live_generation", "Number of the live generation, 0 if none.", ("stream",), registry=r
        )
        self.generation_info = Gauge(
            "accrete_generation_info",
            "1 for the live generation; join on it for the digest.",
            ("stream", "generation", "digest", "method"),
            registry=r,
        )
        self.resident_generations = Gauge(
            "accrete_resident_generations", "Generations held in memory.", ("stream",), registry=r
        )
        self.resident_bytes = Gauge(
            "accrete_resident_generation_bytes",
            "Bytes of the resident generations beyond the shared backbone.",
            ("stream",),
            registry=r,
        )
        self.swaps = Counter(
            "accrete_swaps", "Moves of the live pointer, by outcome.", ("stream", "outcome"), registry=r
        )
        self.swap_duration = Histogram(
            "accrete_swap_duration_seconds",
            "Time of each phase of a swap; only `publish` can hold up a request.",
            ("stream", "phase"),
            buckets=SWAP_BUCKETS,
            registry=r,
        )
        self.swap_pause = Histogram(
            "accrete_swap_pause_seconds",
            "How long the pointer's lock was held at a swap: no request could be admitted meanwhile.",
            ("stream",),
            buckets=PAUSE_BUCKETS,
            registry=r,
        )
        self.requests = Counter(
            "accrete_inference_requests",
            "Answered requests; the outcomes add up to all of them.",
            ("stream", "endpoint", "outcome"),
            registry=r,
        )
        self.request_duration = Histogram(
            "accrete_inference_request_duration_seconds",
            "From the request's arrival to its answer.",
            ("stream", "endpoint"),
            buckets=LATENCY_BUCKETS,
            registry=r,
        )
        self.queue_duration = Histogram(
            "accrete_inference_queue_duration_seconds",
            "How long requests waited for their batch.",
            ("stream",),
            buckets=LATENCY_BUCKETS,
            registry=r,
        )
        self.batch_size = Histogram(
            "accrete_inference_batch_size",
            "Inputs computed together.",
            ("stream",),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=r,
        )
        self.events_published = Counter(
            "accrete_events_published",
            "Events that the stream's topic has confirmed; repeated ones count again.",
            ("stream", "type"),
            registry=r,
        )
        self.events_pending = Gauge(
            "accrete_events_pending", "Events that wait in the outbox.", ("stream",), registry=r
        )
        self.control_commands = Counter(
            "accrete_control_commands",
            "Messages of the control topic; the outcomes add up to all of them.",
            ("stream", "outcome"),
            registry=r,
        )
        self.transactions = Counter(
            "accrete_transactions",
            "Kafka transactions of events and predictions; the outcomes add up to all that have ended. "
            "fenced: another daemon has taken over.",
            ("stream", "outcome"),
            registry=r,
        )
        self.topic_lag_records = Gauge(
            "accrete_topic_lag_records",
            "Records of the stream's control and requests topics that are not dealt with yet.",
            ("stream", "kind", "partition"),
            registry=r,
        )
        self.topic_lag_seconds = Gauge(
            "accrete_topic_lag_seconds",
            "Age of the oldest record of the control and requests topics not dealt with yet, 0 if none.",
            ("stream", "kind", "partition"),
            registry=r,
        )
        self.remembered_ids = Gauge(
            "accrete_remembered_ids",
            "Ids kept to recognise what comes again, as of the last turn of their pruning: of commands, and "
            "idempotency keys of the embedded log's messages.",
            ("kind",),
            registry=r,
        )
        self.forgotten_ids = Counter(
            "accrete_forgotten_ids",
            "Ids forgotten because they were kept for as long as retention says.",
            ("kind",),
            registry=r,
        )
        self.ready = Gauge("accrete_ready", "1 while the daemon answers /readyz with 200.", registry=r)

    def initialise(self, streams: Sequence[str], policies: Sequence[str]) -> None:
        """Create every label combination, so that `rate()` sees a zero before the first event."""
        for id_kind in ID_KINDS:
            self.remembered_ids.labels(id_kind)
            self.forgotten_ids.labels(id_kind)
        for stream in streams:
            for outcome in RECORD_OUTCOMES:
                self.records_consumed.labels(stream, outcome)
            for outcome in SAMPLE_OUTCOMES:
                self.samples.labels(stream, outcome)
            for reason in DeadLetterReason:
                self.dead_letters.labels(stream, reason.value)
            for policy in policies:
                for fired in ("true", "false"):
                    self.trigger_decisions.labels(stream, policy, fired)
            for outcome in SESSION_OUTCOMES:
                self.sessions.labels(stream, outcome)
            for outcome in SWAP_OUTCOMES:
                self.swaps.labels(stream, outcome)
            for event in EventKind:
                self.events_published.labels(stream, event.value)
            for outcome in COMMAND_OUTCOMES:
                self.control_commands.labels(stream, outcome)
            for outcome in TRANSACTION_OUTCOMES:
                self.transactions.labels(stream, outcome)
            for phase in SWAP_PHASES:
                self.swap_duration.labels(stream, phase)
            for state in BUFFER_STATES:
                self.buffered_samples.labels(stream, state)
            for state in CLASS_STATES:
                self.classes.labels(stream, state)
            for kind in ACCURACY_KINDS:
                self.accuracy.labels(stream, kind)
            for endpoint in ENDPOINTS:
                self.request_duration.labels(stream, endpoint)
                for outcome in REQUEST_OUTCOMES:
                    self.requests.labels(stream, endpoint, outcome)
            for instrument in (
                self.last_poll,
                self.source_up,
                self.consumer_paused,
                self.samples_withdrawn,
                self.session_restarts,
                self.trainer_stalls,
                self.classes_forgotten,
                self.session_duration,
                self.session_running,
                self.session_progress,
                self.forgetting,
                self.backward_transfer,
                self.certificate_ok,
                self.live_generation,
                self.resident_generations,
                self.resident_bytes,
                self.swap_pause,
                self.queue_duration,
                self.batch_size,
                self.events_pending,
            ):
                instrument.labels(stream)
