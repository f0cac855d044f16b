"""SGDS with families against the baselines, on streams of several kinds of image and of one.

Where there are several kinds, data sets come one after another, no session has classes of two: sketches,
photographs and clothes ask for different features, which a first session alone cannot adapt. `one_family`
lets every session join the first one, `sgds` none. Results are judged on test images; nothing was chosen by
them. Finished runs are kept beside the JSON file, so that a killed benchmark goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import structlog

from cl_engine.assets.catalogue import TINYVIT_5M
from tests.benchmarks.class_streams import ClassStream
from tests.benchmarks.frame import Figure, parse_options, report
from tests.benchmarks.result_cache import ResultCache
from tests.benchmarks.sgds_ablation import (
    ABLATIONS,
    BASELINES,
    CIFAR10,
    CIFAR10_112,
    QUICKDRAW345,
    RIDGES,
    Part,
    Variant,
    described,
    mean_and_spread,
    run_part,
)

# All that keep no sample, the adapters of one of them as wide as joint training's.
EXEMPLAR_FREE = {name: v for name, v in BASELINES.items() if v.method not in ("joint", "finetune")} | {
    "ridge_first_session_32": Variant("ridge", {"adapt_first_session": True, "first_session_units": 32}),
}
FAMILIES: Mapping[str, Variant] = {
    "families": Variant("sgds", {"families": 8}),
    "families_first_session": Variant("sgds", {"families": 8, "adapt_first_session": True}),
    # Every kinship is above this: the semantics have no say.
    "one_family": Variant("sgds", {"families": 8, "kinship": 1e-9}),
    "families_no_mask": Variant("sgds", {"families": 8, "mask": "none"}),
    "families_random_mask": Variant("sgds", {"families": 8, "mask": "random"}),
    "families_32": Variant("sgds", {"families": 8, "units_per_session": 32}),
    "families_exemplars_2": Variant("sgds", {"families": 8, "exemplars_per_class": 2}),
    "families_exemplars_5": Variant("sgds", {"families": 8, "exemplars_per_class": 5}),
}
WIDE_WITH_EXEMPLARS: Mapping[str, Variant] = {
    f"families_32_exemplars_{count}": Variant(
        "sgds", {"families": 8, "units_per_session": 32, "exemplars_per_class": count}
    )
    for count in (2, 5)
}
VARIANTS = {**BASELINES, **EXEMPLAR_FREE, **ABLATIONS, **FAMILIES, **WIDE_WITH_EXEMPLARS}
MAIN = (*RIDGES, "slda", "joint", "sgds", "families", "one_family")
OTHER_BACKBONE = (
    "ridge",
    "ridge_first_session",
    "slda",
    "ncm",
    "finetune",
    "joint",
    "sgds",
    "sgds_first_session",
    "families",
)
KINDS = "cifar10+fashion_mnist+quickdraw345"
SKETCHES = ClassStream("quickdraw345", 56, 15, 30, 8, 30, classes=60, feature_blocks=2)
MORE_SKETCHES = replace(SKETCHES, train_per_class=60, held_per_class=10)
FULL = (
    Part(
        "tens_",
        ClassStream(KINDS, 56, 10, 40, 10, 50, classes=30, feature_blocks=2),
        (*MAIN, "ncm", "ranpac", "finetune", "sgds_first_session", *list(FAMILIES)[1:]),
        bound=False,
    ),
    Part("fives_", ClassStream(KINDS, 56, 5, 80, 20, 100, classes=10, feature_blocks=2), MAIN, bound=False),
    # One kind, and many classes a session.
    Part(
        "quickdraw60_",
        SKETCHES,
        (
            *EXEMPLAR_FREE,
            "finetune",
            "joint",
            "sgds",
            "sgds_first_session",
            *(name for name in FAMILIES if name != "one_family"),
        ),
        bound=False,
    ),
    # Twice as many sketches.
    Part(
        "quickdraw60_60_",
        MORE_SKETCHES,
        (
            "ridge",
            "ridge_first_session",
            "ridge_first_session_32",
            "slda",
            "joint",
            "families",
            "families_32",
            *WIDE_WITH_EXEMPLARS,
        ),
        bound=False,
    ),
    # The streams of `sgds_ablation`.
    Part(
        "cifar10_",
        CIFAR10,
        ("ridge", "ridge_first_session", "families", "families_first_session"),
        bound=False,
    ),
    Part(
        "cifar10_112_",
        CIFAR10_112,
        ("ridge", "ridge_first_session", "joint", "families", "families_first_session"),
        bound=False,
    ),
    Part("quickdraw345_", QUICKDRAW345, ("ridge", "families"), bound=False),
    # The other backbone beside them; adapters fit into its last two blocks.
    *(
        Part(
            f"tiny_vit_{name}_",
            replace(stream, size=128, adapter_blocks=2, backbone=TINYVIT_5M),
            OTHER_BACKBONE,
            bound=False,
        )
        for name, stream in (
            ("cifar10", CIFAR10),
            ("quickdraw60", SKETCHES),
            ("quickdraw60_60", MORE_SKETCHES),
            ("quickdraw345", QUICKDRAW345),
        )
    ),
)
QUICK = (
    Part(
        "quick_",
        ClassStream("cifar10+fashion_mnist", 28, 5, 12, 4, 10, feature_blocks=2),
        ("ridge", "ridge_first_session", "joint", "sgds", "families"),
        bound=False,
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse_options("sgds_families", "SGDS with families on streams of several kinds.", arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    parts = QUICK if options.quick else FULL
    finished = ResultCache(options.json.with_suffix(".parts.jsonl"))
    figures: dict[str, Figure] = {}
    for number, part in enumerate(parts, start=1):
        figures |= _figures(part, run_part(part, VARIANTS, options, finished))
        report(options, "SGDS with families", figures, [described(p) for p in parts[:number]])


def _figures(part: Part, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Figure]:
    names = ("a_t", "a_bar", "forgetting", "seconds", "right_session_share", "true_session_a_t")
    figures = mean_and_spread(part.prefix, runs, names)
    a_t = {name: fmean(r["a_t"] for r in results) for name, results in runs.items()}
    strongest = max(value for name, value in a_t.items() if name in EXEMPLAR_FREE)
    if "joint" in a_t:
        figures[f"{part.prefix}headroom_points"] = 100 * (a_t["joint"] - a_t["ridge"])
    for name, value in a_t.items():
        if VARIANTS[name].method == "sgds":
            figures[f"{part.prefix}{name}_gain_points"] = 100 * (value - strongest)
    figures[f"{part.prefix}families_found"] = fmean(r["families"] for r in runs["families"])
    return figures


if __name__ == "__main__":
    main()
