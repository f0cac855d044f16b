"""Which method learns a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from daemon.settings.section import Section

# Takes a method and its options, and raises ValueError for what is wrong with them.
OptionsCheck = Callable[[str, Mapping[str, Any]], object]
# Not a plain import: the methods need torch, which takes seconds to load, and most commands do without.
options_check: ContextVar[OptionsCheck | None] = ContextVar("options_check", default=None)


class LearnerSettings(Section):
    """Which method learns the stream."""

    method: Literal["sgds", "exssnet", "supsup", "ridge", "ranpac", "slda", "ncm", "finetune"] = "sgds"
    """`sgds`: semantic-guided dynamic sparsification; `exssnet`, `supsup`: supermask subnetworks; and the
    baselines, `ridge`: exact ridge head over frozen features, `ranpac`: the same over a random projection,
    `slda`: streaming linear discriminants, `ncm`: nearest class mean, and `finetune`: naive fine-tuning,
    which forgets."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's own settings, checked by the method; `accrete config show` lists them."""
    seed: int = Field(default=1993, ge=0)
    """Everything random derives from it."""

    @field_validator("options")
    @classmethod
    def _options_fit(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        check, method = options_check.get(), info.data.get("method")
        if check is not None and method is not None:
            check(method, options)
        return options
