"""What the settings of the first session's adapters and of families were chosen by: training images held out.

The streams are two of those that SGDS is judged on (`sgds_ablation`, `sgds_families`), the judges other
training images, as many as there are test images. No test image is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from tests.benchmarks.class_streams import ClassStream
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.result_cache import ResultCache
from tests.benchmarks.sgds_ablation import (
    ABLATIONS,
    BASELINES,
    CIFAR10,
    Part,
    Variant,
    described,
    mean_and_spread,
    run_part,
)
from tests.benchmarks.sgds_families import EXEMPLAR_FREE, FAMILIES, SKETCHES

CHOICES: Mapping[str, Variant] = {
    "ridge_standardised": Variant("ridge", {"standardise": "first_session"}),
    # A quarter of the way to the trained adapters, without the frozen features.
    "ridge_first_session_quarter": Variant(
        "ridge", {"adapt_first_session": True, "first_session_scale": 0.25, "first_session_share": 1.0}
    ),
    "sgds_32": Variant("sgds", {"units_per_session": 32}),
}
VARIANTS = {**BASELINES, **EXEMPLAR_FREE, **ABLATIONS, **FAMILIES, **CHOICES}
WANTED = (
    "ridge",
    "ridge_standardised",
    "ridge_first_session",
    "ridge_first_session_32",
    "ridge_first_session_quarter",
    "ridge_first_session_whole",
    "ridge_first_session_only",
    "sgds",
    "sgds_32",
    "families",
    "families_32",
)
FULL = (
    Part("cifar10_", replace(CIFAR10, judge="held-out"), WANTED, bound=False),
    Part("quickdraw60_", replace(SKETCHES, judge="held-out"), WANTED, bound=False),
)
QUICK = (
    Part(
        "quick_",
        ClassStream("cifar10", 28, 5, 12, 4, 10, judge="held-out", feature_blocks=2),
        ("ridge", "ridge_standardised", "ridge_first_session_quarter", "families_32"),
        bound=False,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("held_out_settings", "Settings of SGDS, judged on held-out images.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    parts = QUICK if options.quick else FULL
    finished = ResultCache(options.json.with_suffix(".parts.jsonl"))
    figures: dict[str, Figure] = {}
    for number, part in enumerate(parts, start=1):
        runs = run_part(part, VARIANTS, options, finished)
        figures |= mean_and_spread(part.prefix, runs, ("a_t", "forgetting", "seconds"))
        report(options, "Settings on held-out images", figures, [described(p) for p in parts[:number]])


if __name__ == "__main__":
    main()
