"""Learners by the name that stands in settings, manifests and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from cl_engine.backbones import Backbone, BlockwiseBackbone
from cl_engine.backbones.blockwise import adaptable_blocks
from cl_engine.errors import UnsupportedGeneration
from cl_engine.features import Extract
from cl_engine.features import extract as extract_features
from cl_engine.generation import Generation
from cl_engine.learners.analytic import AnalyticSettings
from cl_engine.learners.base import Learner, Servable
from cl_engine.learners.fine_tuning import FineTuningLearner, FineTuningSettings
from cl_engine.learners.forgetting import Forgets
from cl_engine.learners.nearest_mean import NearestMeanLearner, NearestMeanSettings
from cl_engine.learners.ranpac import RanPACLearner, RanPACSettings
from cl_engine.learners.ridge import RidgeLearner, RidgeSettings
from cl_engine.learners.slda import SLDALearner, SLDASettings
from cl_engine.samples import SampleSet
from cl_engine.sgds import SGDSLearner, SGDSSettings
from cl_engine.supermask.learner import ExSSNeTLearner, SupSupLearner
from cl_engine.supermask.learner_settings import ExSSNeTSettings, SupSupSettings


class _Factory(Protocol):
    def __call__(self, backbone: BlockwiseBackbone, settings: Any, extract: Extract = ...) -> Learner: ...


@dataclass(frozen=True)
class _Method:
    factory: _Factory
    settings: type[BaseModel]


_METHODS: Mapping[str, _Method] = {
    "sgds": _Method(SGDSLearner, SGDSSettings),
    "exssnet": _Method(ExSSNeTLearner, ExSSNeTSettings),
    "supsup": _Method(SupSupLearner, SupSupSettings),
    "ridge": _Method(RidgeLearner, RidgeSettings),
    "ranpac": _Method(RanPACLearner, RanPACSettings),
    "slda": _Method(SLDALearner, SLDASettings),
    "ncm": _Method(NearestMeanLearner, NearestMeanSettings),
    "finetune": _Method(FineTuningLearner, FineTuningSettings),
}


def methods() -> tuple[str, ...]:
    """Name the methods."""
    return tuple(_METHODS)


def forgetting_methods() -> tuple[str, ...]:
    """Name the methods that can take a class out of a generation."""
    return tuple(name for name, method in _METHODS.items() if hasattr(method.factory, "forget"))


def default_options(method: str) -> dict[str, Any]:
    """Return a method's settings with their defaults.

    Raises:
        ValueError: unknown method.
    """
    return _method(method).settings().model_dump()


def check_options(method: str, options: Mapping[str, Any]) -> BaseModel:
    """Validate a method's settings without building anything.

    Raises:
        ValueError: unknown method, or an option that it does not have or cannot take; lists all.
    """
    try:
        return _method(method).settings(**options)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"options of method {method!r}: {wrong}") from error


def create(
    method: str,
    backbone: Backbone,
    options: Mapping[str, Any] | None = None,
    extract: Extract = extract_features,
) -> Learner:
    """Build a learner.

    Args:
        method: one of `methods()`.
        backbone: the frozen network.
        options: the method's settings; defaults where left out.
        extract: where base features come from.

    Raises:
        ValueError: unknown method or option, or a backbone that cannot be read block by block.
    """
    settings = check_options(method, options or {})
    if not isinstance(backbone, BlockwiseBackbone):
        raise ValueError(  # noqa: TRY004 - a wrong choice of backbone, not a wrong type in code
            f"method {method!r} reads a transformer block by block; backbone {backbone.id} is none: choose a "
            "timm model of class VisionTransformer or TinyVit, or a text encoder of the asset catalogue"
        )
    _check_blocks(settings, backbone)
    return _method(method).factory(backbone, settings, extract)


def servable(backbone: Backbone, generation: Generation) -> Servable:
    """Make any generation ready to answer, whichever method made it.

    Raises:
        UnsupportedGeneration: made for another backbone, or by a method or with settings that this
            release does not have.
    """
    if generation.method not in _METHODS:
        raise UnsupportedGeneration(
            f"generation {generation.digest}: method {generation.method!r} is not one of {methods()}"
        )
    if generation.backbone != backbone.id:
        raise UnsupportedGeneration(
            f"generation {generation.digest} belongs to backbone {generation.backbone}, this is {backbone.id}"
        )
    try:
        learner = create(generation.method, backbone, generation.settings)
    except ValueError as error:
        raise UnsupportedGeneration(f"generation {generation.digest}: {error}") from error
    return learner.servable(generation)


def forget(
    backbone: Backbone,
    generation: Generation,
    class_id: int,
    samples: SampleSet,
    extract: Extract = extract_features,
) -> Generation:
    """Return a generation in which a class was never learnt, and all others answer as they did.

    Args:
        backbone: the frozen network it was made on.
        generation: with its learner state.
        class_id: permanent id of the class.
        samples: every training sample of the class that any session has learnt.
        extract: where base features come from.

    Raises:
        UnsupportedGeneration: of another backbone, or without its learner state.
        ValueError: the method cannot take a class out, the class is unknown or the last one, or the
            samples are not all that it was learnt from.
        CertificateViolation: something of another class would change.
    """
    learner = create(generation.method, backbone, generation.settings, extract)
    if not isinstance(learner, Forgets):
        raise ValueError(  # noqa: TRY004 - a wrong choice of method, not a wrong type in code
            f"method {generation.method!r} cannot take a class out of what it has trained: retrain without "
            f"class {class_id}, or learn with one of {', '.join(forgetting_methods())}"
        )
    return learner.forget(generation, class_id, samples)


def _check_blocks(settings: BaseModel, backbone: BlockwiseBackbone) -> None:
    """Check that features and adapters find their blocks.

    Raises:
        ValueError: the backbone has fewer blocks, or fewer that can have adapters.
    """
    for name, most, what in (
        ("feature_blocks", backbone.depth, "blocks"),
        ("adapter_blocks", adaptable_blocks(backbone), "last blocks of one width, where adapters fit"),
    ):
        wanted = getattr(settings, name, 0)
        if (
            name == "adapter_blocks"
            and isinstance(settings, AnalyticSettings)
            and not settings.adapt_first_session
        ):
            continue
        if wanted > most:
            raise ValueError(
                f"{name} is {wanted}, backbone {backbone.id} has {most} {what}: set {name} to {most}"
            )


def _method(name: str) -> _Method:
    if name not in _METHODS:
        raise ValueError(f"method {name!r} is not one of {', '.join(_METHODS)}")
    return _METHODS[name]
