"""What survives on Apache Kafka: kills, outages and rebalances, against an undisturbed run of the stream."""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.frame import Figure, parse_options, report
from tests.support.disturbed_run import BACKBONE, LEARNER, PARTITIONS, DisturbedRun, write_weights
from tests.support.kafka_broker import KafkaBroker, free_port
from tests.support.kill_steps import STEPS, arm
from tests.support.labelled_stream import PIXELS, Group, chatter, made_stream, one_group_per_partition
from tests.support.stream_feed import Stuck
from tests.support.stream_outcome import LearntGeneration, Outcome, divergences
from tests.support.tcp_proxy import TcpProxy

# How long a life lasts before its kill, in units of the time until the first promotion.
LIFE = (0.02, 1.6)
STEP_SECONDS = 180.0
# Pulses of records that arrive while a second daemon joins.
CHATTER = 40


@dataclass(frozen=True)
class Plan:
    """How much is done.

    Attributes:
        groups: of the undisturbed stream; a disturbed run ends after the group under way.
        random_kills: of the daemon.
        rounds: how often it dies at each named step.
        broker_kills, freezes: of the broker.
        outage_seconds: how long the network is away, and how long each of the two ways.
        freeze_seconds: how long the broker is stopped.
        shared_session_seconds: how long the session takes in which a second daemon joins; None: none joins.
        steps: which ones.
    """

    groups: int
    random_kills: int
    rounds: int
    broker_kills: int
    freezes: int
    outage_seconds: float
    freeze_seconds: float
    shared_session_seconds: float | None
    steps: tuple[str, ...] = tuple(STEPS)


FULL = Plan(
    groups=24,
    random_kills=50,
    rounds=5,
    broker_kills=3,
    freezes=3,
    outage_seconds=60.0,
    freeze_seconds=10.0,
    shared_session_seconds=20.0,
)
QUICK = Plan(
    groups=6,
    random_kills=1,
    rounds=1,
    broker_kills=1,
    freezes=0,
    outage_seconds=3.0,
    freeze_seconds=0.0,
    shared_session_seconds=None,
)


@dataclass(frozen=True)
class Result:
    """What one scenario came to.

    Attributes:
        kills: processes killed in it.
        outcome: what was left.
        diverged: generations that differ from the undisturbed run's.
        samples: produced.
        seconds: it took.
    """

    kills: int
    outcome: Outcome
    diverged: int
    samples: int
    seconds: float

    def describe(self) -> str:
        """Return it as one line."""
        return (
            f"{self.samples} samples, {self.kills} kills, {self.outcome.lost} lost, "
            f"{self.outcome.duplicated} duplicated, {self.diverged} diverged, "
            f"{self.outcome.miscounted} miscounted, {self.seconds:.0f} s"
        )


@dataclass
class Matrix:
    """The scenarios on one broker.

    Args:
        root: directory for everything.
        plan: how much.
        seed: of the stream, the moments and the order of the steps.
        broker: with a listener PROXIED.
        proxied_port: where that listener's clients are sent to.
    """

    root: Path
    plan: Plan
    seed: int
    broker: KafkaBroker
    proxied_port: int
    results: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = self.root / "backbone.safetensors"
        write_weights(self.weights)
        self.groups = made_stream(self.plan.groups, PARTITIONS, self.seed)
        self.undisturbed: Sequence[LearntGeneration] = ()
        self.first_seconds = 0.0

    # -- scenarios

    def calm(self) -> None:
        """Learn the whole stream without any disturbance."""
        with self._run("undisturbed", self.groups) as run:
            run.daemon.start()
            # The first start imports everything, which no later one does.
            run.daemon.wait_ready()
            started = time.monotonic()
            run.feeder.start()
            run.wait(lambda: run.feeder.promoted() > 0, "the first session")
            self.first_seconds = time.monotonic() - started
            self.undisturbed = run.settle().generations[0]
        assert len(self.undisturbed) == len(self.groups)

    def random_moments(self, kills: int, *, static_member: bool) -> None:
        """Kill the daemon at random moments of its life."""
        draw = random.Random(f"{self.seed} moments {static_member}")
        source = {"group_instance_id": "the-one"} if static_member else {"session_timeout_seconds": 3.0}
        name = f"daemon killed at random moments, {'static' if static_member else 'dynamic'} member"
        with self._scenario(name, kills, source=source) as run:
            run.daemon.start()
            run.feeder.start()
            for _ in range(kills):
                run.rest(draw.uniform(*LIFE) * self.first_seconds)
                run.daemon.check()
                run.daemon.kill()
                run.daemon.start()

    def named_steps(self) -> None:
        """Have the daemon die at each step of the hand-over, in another order each round."""
        steps, rounds = self.plan.steps, self.plan.rounds
        draw = random.Random(f"{self.seed} steps")
        name = "daemon killed at each named step"
        with self._scenario(name, rounds * len(steps), source={"group_instance_id": "the-one"}) as run:
            run.feeder.start()
            for _ in range(rounds):
                for step in draw.sample(steps, len(steps)):
                    run.daemon.start(prepare=partial(arm, step))
                    status = run.daemon.wait_end(STEP_SECONDS)
                    run.feeder.done()
                    if status != -9:
                        raise Stuck(f"{step!r}: status {status} instead of a kill\n{run.daemon.tail()}")
            run.daemon.start()

    def broker_faults(self) -> None:
        """Kill the broker and start it again; stop it for a while."""
        draw = random.Random(f"{self.seed} broker")
        faults = ["kill"] * self.plan.broker_kills + ["freeze"] * self.plan.freezes
        draw.shuffle(faults)
        with self._scenario("broker killed and frozen", self.plan.broker_kills) as run:
            run.daemon.start()
            run.feeder.start()
            for fault in faults:
                run.rest(draw.uniform(*LIFE) * self.first_seconds)
                if fault == "kill":
                    self.broker.kill()
                    run.rest(draw.uniform(0.0, 3.0))
                    self.broker.start()
                else:
                    self.broker.freeze()
                    run.rest(self.plan.freeze_seconds)
                    self.broker.thaw()

    def network_outages(self) -> None:
        """Cut the daemon off the broker, first by closed connections, then by lost packets."""
        draw = random.Random(f"{self.seed} network")
        network = TcpProxy(f"127.0.0.1:{self.broker.ports['PROXIED']}", self.proxied_port)
        try:
            with self._scenario("network cut", 0, daemon_address=network.address) as run:
                run.daemon.start()
                run.feeder.start()
                for fault in (network.cut, network.swallow):
                    run.rest(draw.uniform(*LIFE) * self.first_seconds)
                    fault()
                    run.rest(self.plan.outage_seconds)
                    network.heal()
        finally:
            network.close()

    def two_members(self, session_seconds: float) -> None:
        """Let a second daemon join the group while the first is in the middle of a session.

        Both have states of their own. Records of all partitions go on arriving meanwhile. Of the classes that
        come later each has its partition, so that it belongs to the daemon that owns that.
        """
        later = one_group_per_partition(100, PARTITIONS, self.seed)
        groups = [self.groups[0], chatter(later, CHATTER), *later]

        def diverged(outcome: Outcome) -> int:
            learnt = [generations[-1].labels if generations else () for generations in outcome.generations]
            together = {label for group in groups for label in group.labels}
            return (
                (outcome.generations[0][:1] != tuple(self.undisturbed[:1]))
                + len(together.symmetric_difference(label for labels in learnt for label in labels))
                + len(set(learnt[0]).intersection(learnt[1]))
            )

        with self._scenario(
            "two daemons, rebalance in a session",
            0,
            groups,
            diverged,
            daemons=2,
            pulse_seconds=session_seconds / CHATTER,
        ) as run:
            one, other = run.daemons
            one.start(session_seconds=session_seconds)
            run.feeder.start()
            run.wait(lambda: run.feeder.begun() == 1, "the first session begins")
            other.start()
            run.wait(run.is_shared, "two members share the partitions")
            if run.feeder.promoted():
                raise Stuck("the session had ended before the group had rebalanced: it was too short")
            run.feeder.go_on.set()

    def second_on_one_state(self) -> None:
        """Start a second daemon on the state of a running one: it is refused, and the first goes on."""
        with self._scenario("second daemon on the same state", 0) as run:
            run.daemon.start()
            run.feeder.start()
            run.daemon.wait_ready()
            second = run.second_on_same_state()
            second.start()
            status = second.wait_end(STEP_SECONDS)
            said = second.tail()
            if status != 1 or f"process {run.daemon.pid} is using it" not in said:
                raise Stuck(f"the second daemon was not refused: status {status}\n{said}")

    # -- around them

    def run(self) -> None:
        """Run every scenario."""
        self.calm()
        kills = self.plan.random_kills
        self.random_moments(kills - kills // 2, static_member=True)
        if kills // 2:
            self.random_moments(kills // 2, static_member=False)
        self.named_steps()
        self.broker_faults()
        self.network_outages()
        if self.plan.shared_session_seconds is not None:
            self.two_members(self.plan.shared_session_seconds)
        self.second_on_one_state()

    @contextmanager
    def _run(self, name: str, groups: Sequence[Group], **settings: Any) -> Iterator[DisturbedRun]:
        directory = self.root / re.sub(r"\W+", "-", name)
        run = DisturbedRun(directory, self.weights, groups, self.broker.address, **settings)
        try:
            yield run
        except BaseException:
            print(run.daemon.tail(), file=sys.stderr)
            raise
        finally:
            run.stop()

    @contextmanager
    def _scenario(
        self,
        name: str,
        kills: int,
        groups: Sequence[Group] | None = None,
        diverged: Callable[[Outcome], int] | None = None,
        **settings: Any,
    ) -> Iterator[DisturbedRun]:
        started = time.monotonic()
        with self._run(name, groups or self.groups, **settings) as run:
            yield run
            if groups is None:
                run.feeder.finish()
            outcome = run.settle()
        expected = self.undisturbed[: run.feeder.produced.groups]
        differing = divergences(outcome.generations[0], expected) if diverged is None else diverged(outcome)
        result = Result(kills, outcome, differing, run.feeder.produced.total, time.monotonic() - started)
        self.results[name] = result
        print(f"{name}: {result.describe()}", flush=True)


@contextmanager
def started_broker(root: Path) -> Iterator[tuple[KafkaBroker, int]]:
    """Run a broker, and name the port where a proxy in front of it must listen."""
    port = free_port()
    (root / "broker").mkdir()
    broker = KafkaBroker(
        root / "broker",
        extra_listeners={"PROXIED": "PLAINTEXT"},
        advertised={"PROXIED": f"127.0.0.1:{port}"},
    )
    broker.start()
    try:
        yield broker, port
    finally:
        broker.stop()


def figures(results: Mapping[str, Result]) -> dict[str, Figure]:
    """Return the sums over all scenarios, then what each came to."""
    outcomes = [result.outcome for result in results.values()]
    sums: dict[str, Figure] = {
        "kills": sum(result.kills for result in results.values()),
        "lost": sum(outcome.lost for outcome in outcomes),
        "duplicated": sum(outcome.duplicated for outcome in outcomes),
        "diverged": sum(result.diverged for result in results.values()),
        "miscounted": sum(outcome.miscounted for outcome in outcomes),
        "repeated_dead_letters": sum(outcome.repeated_letters for outcome in outcomes),
        "sessions_resumed": sum(outcome.resumed for outcome in outcomes),
        "samples": sum(result.samples for result in results.values()),
    }
    return sums | {name: result.describe() for name, result in results.items()}


def main() -> None:
    """Run the matrix for each seed and report the sums."""
    options = parse_options("kill_matrix", __doc__ or "")
    results: dict[str, Result] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="accrete-kill-matrix-") as root:
            with started_broker(Path(root)) as (broker, port):
                matrix = Matrix(Path(root), QUICK if options.quick else FULL, seed, broker, port)
                matrix.run()
            results |= {f"{name} (seed {seed})": result for name, result in matrix.results.items()}
    report(
        options,
        "What survives on Apache Kafka",
        figures(results),
        [
            "lost, duplicated, miscounted: samples; diverged: generations unlike the undisturbed run's",
            f"learner: {LEARNER['method']} on {BACKBONE} at {PIXELS} px with random weights",
        ],
    )


if __name__ == "__main__":
    main()
