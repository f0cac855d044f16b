"""The commands; each imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from daemon.cli import command, dlq, forgetting, lag, schemas, topics
from daemon.cli.client import DaemonClient, console, fail, listing, settings_or_exit
from daemon.cli.options import Config, Stream, Url, local_time

app = typer.Typer(
    help="Accrete: a daemon that learns new classes from a stream and serves them without a pause.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(topics.app, name="topics")
app.add_typer(dlq.app, name="dlq")
app.command()(forgetting.forget)
app.command()(forgetting.remember)
app.command()(command.command)
app.command()(lag.lag)
app.command()(schemas.schemas)


@app.command()
def run(config: Config = None) -> None:
    """Run the daemon until it is told to stop."""
    from daemon.errors import DaemonError
    from daemon.logs import configure_logging

    settings = settings_or_exit(config)
    configure_logging(settings.log)
    # Read by OpenMP when torch is loaded: serving threads that spin while they wait would starve the trainer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Loading torch takes seconds; a stop that comes meanwhile must not be a traceback.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    from cl_engine.errors import EngineError
    from daemon.app import run as run_daemon

    try:
        run_daemon(settings)
    except (DaemonError, EngineError, OSError) as error:
        fail(f"{type(error).__name__}: {error}")


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the service running until Ctrl-C.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the summary as JSON.")] = None,
    plot: Annotated[Path, typer.Option(help="Where the plot goes.")] = Path("demo-output/accuracy.png"),
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images; for a look, not for figures.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which images are drawn, and the learner's seed.")] = 1,
) -> None:
    """Learn CIFAR-10 two classes at a time on a running daemon, under a constant load of requests."""
    from daemon.demo import DemoSettings, run_demo

    run_demo(
        DemoSettings.quick(seed) if quick else DemoSettings(seed=seed), keep=keep, json_path=json, plot=plot
    )


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def bench(context: typer.Context) -> None:
    """Compare the methods on your own data; `accrete bench --help` lists the options."""
    from cl_engine.bench.cli import main as run_bench

    run_bench("accrete bench", context.args)


@app.command()
def produce(
    paths: Annotated[
        list[Path],
        typer.Argument(help="Directories (one per class, or of such), files, .tsv tables of text and label."),
    ],
    config: Config = None,
    stream: Stream = None,
    label: Annotated[
        str | None, typer.Option(help="Label of all files; else their directory's name.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Samples of one class per message; 1 sends them raw.")
    ] = 1,
) -> None:
    """Append labelled files to a stream's topic."""
    from daemon.cli.produce import produce_files

    produce_files(settings_or_exit(config), stream, paths, label, batch)


@app.command()
def status(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """Show what the daemon is doing."""
    found = DaemonClient(config, url, stream).get("status")
    table = Table(show_header=False, box=None)
    live, session, samples = found["live"], found["session"], found["intake"]["samples"]
    table.add_row("stream", f"{found['stream']} ({found['source']['kind']}: {found['source']['topic']})")
    table.add_row("method", found["method"])
    table.add_row("backbone", f"{found['runtime']['backbone']} on {found['runtime']['device']}")
    table.add_row(
        "live generation",
        "none yet"
        if live is None
        else f"{live['number']} (A_T {_ratio(live['accuracy'])}, {live['digest'][:12]})",
    )
    table.add_row("classes", ", ".join(f"{n} {state}" for state, n in found["classes"].items()))
    table.add_row("samples", ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in samples.items()))
    waiting = ", ".join(f"{b['label']} {b['train']}" for b in found["buffers"][:10])
    table.add_row("not learnt yet", waiting or "nothing")
    table.add_row(
        "session",
        f"none running, {found['sessions']} so far"
        if session is None
        else f"{session['id']}: {session['phase'] or 'starting'}, {session['done']:.0%} "
        f"after {session['seconds']:.0f} s",
    )
    if found["intake"]["failed"]:
        table.add_row(Text("intake stopped", style="red"), found["intake"]["failed"])
    console.print(table)


@app.command()
def sessions(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """List the sessions."""
    rows = DaemonClient(config, url, stream).get("sessions")["sessions"]
    table = listing(
        "id", "outcome", "new classes", "started", "seconds", "attempts", "A_T", "forgetting", "reason"
    )
    for row in rows:
        detail = row["detail"]
        seconds = "" if row["ended_at"] is None else f"{row['ended_at'] - row['started_at']:.1f}"
        table.add_row(
            str(row["id"]),
            row["outcome"],
            _classes(row),
            local_time(row["started_at"]),
            seconds,
            str(row["attempt"]),
            _ratio(detail.get("a_t")),
            _ratio(detail.get("forgetting")),
            str(detail.get("reason", "")),
        )
    console.print(table)


@app.command()
def classes(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """List the class registry."""
    table = listing("id", "label", "state", "first seen")
    for row in DaemonClient(config, url, stream).get("classes")["classes"]:
        table.add_row(str(row["id"]), row["label"], row["state"], local_time(row["first_seen"]))
    console.print(table)


@app.command()
def generations(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """List the generations."""
    table = listing("number", "digest", "session", "created", "A_T")
    for row in DaemonClient(config, url, stream).get("generations")["generations"]:
        table.add_row(
            str(row["number"]),
            row["digest"][:16],
            str(row["session"]),
            local_time(row["created_at"]),
            _ratio(row["accuracy"]),
        )
    console.print(table)


@app.command()
def decisions(
    config: Config = None,
    url: Url = None,
    stream: Stream = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
) -> None:
    """List the latest decisions of triggers, gates and operators, with their reasons."""
    table = listing("when", "kind", "policy", "fired", "reason")
    for row in DaemonClient(config, url, stream).get("decisions", limit=limit)["decisions"]:
        table.add_row(
            local_time(row["at"]), row["kind"], row["policy"], "yes" if row["fired"] else "no", row["reason"]
        )
    console.print(table)


@app.command()
def flush(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """Start a session now with what is buffered."""
    answer = DaemonClient(config, url, stream).post("flush")
    console.print(("started: " if answer["started"] else "not started: ") + answer["reason"], highlight=False)
    if not answer["started"] and not answer["queued"]:
        raise typer.Exit(1)


@app.command()
def pause(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """Stop taking records in; requests go on being answered."""
    DaemonClient(config, url, stream).post("pause")
    console.print("intake paused; `accrete resume` goes on")


@app.command()
def resume(config: Config = None, url: Url = None, stream: Stream = None) -> None:
    """Take records in again."""
    DaemonClient(config, url, stream).post("resume")
    console.print("intake resumed")


@app.command()
def rollback(
    to: Annotated[
        str | None, typer.Option(help="Number or digest; the one before the live one if left out.")
    ] = None,
    config: Config = None,
    url: Url = None,
    stream: Stream = None,
) -> None:
    """Make another generation live, without loading it where it is still in memory."""
    answer = DaemonClient(config, url, stream).post("rollback", {"generation": to})
    console.print(
        f"generation {answer['generation_number']} is live ({answer['generation'][:12]})", highlight=False
    )


@config_app.command("check")
def config_check(config: Config = None) -> None:
    """Check the configuration and exit with status 2 if anything is wrong."""
    from cl_engine.learners.registry import check_options

    settings_or_exit(config, check_options)
    console.print("the configuration is valid")


@config_app.command("show")
def config_show(config: Config = None) -> None:
    """Print the effective configuration, secrets masked and the methods' defaults filled in."""
    import yaml

    from cl_engine.learners import default_options

    settings = settings_or_exit(config)
    shown = settings.model_dump(mode="json")
    for stream in shown["streams"].values():
        learner = stream["learner"]
        learner["options"] = default_options(learner["method"]) | learner["options"]
    typer.echo(yaml.safe_dump(shown, sort_keys=False))


@app.command()
def doctor(config: Config = None) -> None:
    """Check the machine: packages, device, backbone, disk, and whether the streams can be reached."""
    from daemon.cli.doctor import examine

    if not examine(settings_or_exit(config)):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line."""
    app()


def accreted() -> None:
    """Run the daemon: `accreted --config FILE` is `accrete run --config FILE`."""
    typer.run(run)


def _classes(session: Mapping[str, Any]) -> str:
    """Say which classes a session introduces, or which one it takes out."""
    if session["forgets"] is not None:
        return f"without {session['forgets']}"
    return ", ".join(map(str, session["new_classes"]))


def _ratio(value: Any) -> str:
    return "" if value is None else f"{float(value):.4f}"
