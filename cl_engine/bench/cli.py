"""The command line of the comparison."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.main import get_command

from cl_engine.errors import EngineError

app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
DEFAULT_METHODS = "ridge,slda,ncm,finetune,sgds,joint"
FIRST_SEED = 1993
# Columns of a table with forward transfer and spreads, and some to spare.
_FILE_WIDTH = 120
IMAGES, TEXTS = "vit_small_patch14_dinov2.lvd142m", "all-MiniLM-L6-v2"


@app.command()
def bench(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="Data set of the catalogue (cifar10, clinc150), or a directory with one per class."
        ),
    ],
    methods: Annotated[
        str, typer.Option(help="Comma-separated; `joint` is the upper bound.")
    ] = DEFAULT_METHODS,
    increment: Annotated[int, typer.Option(min=1, help="Classes of each session (IncN).")] = 2,
    base: Annotated[int, typer.Option(min=0, help="Classes of the first session; 0 is B0.")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Class orders, each with a learner seed.")] = 1,
    per_class: Annotated[int, typer.Option(min=2, help="Most training samples of a class.")] = 100,
    test_per_class: Annotated[int, typer.Option(min=1, help="Most test samples of a class.")] = 100,
    holdout: Annotated[float, typer.Option(help="Share of the training samples held out.")] = 0.2,
    backbone: Annotated[
        str | None, typer.Option(help=f"timm model or text encoder; {IMAGES} or {TEXTS} if left out.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Its weights, a safetensors file.")] = None,
    image_size: Annotated[int, typer.Option(min=28, help="Side of the input, pixels.")] = 112,
    max_tokens: Annotated[int, typer.Option(min=3, help="Texts are cut to so many tokens.")] = 128,
    feature_blocks: Annotated[int, typer.Option(min=1, help="Last blocks that all methods read.")] = 4,
    adapter_blocks: Annotated[int, typer.Option(min=1, help="Last blocks that have adapters.")] = 6,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="METHOD.NAME=VALUE, for example sgds.density=0.5.")
    ] = None,
    fwt: Annotated[
        bool, typer.Option("--fwt/--no-fwt", help="Measure forward transfer: sessions are learnt twice.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    features: Annotated[
        Path | None, typer.Option(help="Where features are kept; beside the assets if left out.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write all figures as JSON.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Directory for the plots.")] = None,
) -> None:
    """Compare the methods on your data: accuracy, forgetting, time and size, over one frozen backbone."""
    from cl_engine.assets import cache_directory, text_sets
    from cl_engine.backbones import BlockwiseBackbone, load_backbone
    from cl_engine.bench.compare import Listener, Question, compare
    from cl_engine.bench.data import load_data
    from cl_engine.bench.report import best_on_holdout, record, summarise, table, write_json, write_plots
    from cl_engine.bench.run import MethodRun
    from cl_engine.text_encoder import FrozenTextEncoder

    if not 0 < holdout < 1:
        raise ValueError(f"holdout {holdout} must be above 0 and below 1: learners choose by it")
    question = Question(
        methods=tuple(dict.fromkeys(name.strip() for name in methods.split(","))),
        seeds=tuple(range(FIRST_SEED, FIRST_SEED + seeds)),
        base=base,
        increment=increment,
        feature_blocks=feature_blocks,
        adapter_blocks=adapter_blocks,
        options=parse_options(option or []),
        transfer=fwt,
    )
    question.check()
    console = Console()
    if not console.is_terminal:
        # A file has no edge, and the table must not be cut at that of a narrow terminal.
        console.width = max(console.width, _FILE_WIDTH)
    network = load_backbone(
        backbone or (TEXTS if data in text_sets() else IMAGES),
        image_size=image_size,
        max_tokens=max_tokens,
        weights=weights,
        device=device,
    )
    if not isinstance(network, BlockwiseBackbone):
        raise ValueError(  # noqa: TRY004 - a wrong choice of backbone, not a wrong type in code
            f"backbone {backbone} cannot be read block by block, as the methods do: take a vision "
            "transformer or a text encoder"
        )
    parts = load_data(
        data,
        image_size=image_size,
        per_class=per_class,
        test_per_class=test_per_class,
        holdout_fraction=holdout,
        encoder=network if isinstance(network, FrozenTextEncoder) else None,
    )
    samples = sum(len(part.labels) for part in (parts.train, parts.holdout, parts.test))
    sessions = 1 + -(-(len(parts.class_names) - (base or increment)) // increment)
    bars = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bars, console=console) as progress:
        pass_task = progress.add_task("frozen pass", total=samples)
        session_task = progress.add_task("sessions", total=sessions * len(question.methods) * seeds)

        def show(method: str, seed: int, session: int) -> None:
            text = f"{method}, seed {seed}, session {session + 1}"
            progress.update(session_task, advance=1, description=text)

        def told(run: MethodRun) -> None:
            # On the way to a file there are no bars, and a comparison may take an hour.
            progress.console.print(
                f"{run.method}, seed {run.seed}: A_T {100 * run.figures()['a_t']:.1f}, "
                f"{sum(run.session_seconds):.0f} s",
                highlight=False,
            )

        runs = compare(
            question,
            parts,
            network,
            feature_directory=features or cache_directory() / "features",
            listener=Listener(lambda n: progress.advance(pass_task, n), show, told),
        )
    split = f"B{base}-Inc{increment}"
    title = f"{parts.name} {split}, {network.id}, {len(parts.train.labels)} training samples"
    console.print(table(title, runs))
    if seeds > 1:
        console.print(f"accuracies: mean±standard deviation over {seeds} class orders")
    console.print(
        "accuracies in %; forget: forgetting; FWT: a session learnt after the others against learnt alone, "
        "its classes alone to choose from; held-out: A_T on samples held out of training; s/sess: seconds "
        "a session, the frozen pass left out; KiB/cl: kept for each class; MiB: peak of the whole process"
    )
    best = best_on_holdout(summarise(runs))
    if best is not None:
        console.print(f"On samples held out of training, {best} does best.")
    if json is not None:
        described = {
            "data": parts.name,
            "classes": len(parts.class_names),
            "split": split,
            "training_samples": len(parts.train.labels),
            "held_out_samples": len(parts.holdout.labels),
            "test_samples": len(parts.test.labels),
            "backbone": network.id,
            "options": {method: question.options_of(method) for method in question.methods},
        }
        write_json(json, record(runs, described, _command(context.obj)))
    if plots is not None:
        for path in write_plots(plots, f"{parts.name} {split}", runs):
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def parse_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse METHOD.NAME=VALUE, values as YAML, into settings by method.

    Raises:
        ValueError: one is not of that form.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for text in given:
        name, found, value = text.partition("=")
        method, dot, setting = name.partition(".")
        if not (found and dot and method and setting):
            raise ValueError(f"--set {text!r} must be METHOD.NAME=VALUE, for example sgds.density=0.5")
        parsed.setdefault(method, {})[setting] = yaml.safe_load(value)
    return parsed


def main(program: str, arguments: Sequence[str] | None = None) -> None:
    """Run the command; a mistake ends it with one line and status 1.

    Args:
        program: what the help calls it.
        arguments: instead of the process's own.
    """
    try:
        given = sys.argv[1:] if arguments is None else list(arguments)
        get_command(app).main(given, prog_name=program, obj=given)
    except (EngineError, ValueError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _command(arguments: Sequence[str]) -> str:
    """Return how to run it again; of files the name alone, a record must not depend on where it was made."""
    return " ".join(["accrete bench", *(Path(word).name if "/" in word else word for word in arguments)])
