"""Every exception that `cl_engine` raises on purpose.

    EngineError
    ├── AssetError            an asset could not be fetched, verified or converted
    ├── InputError            a payload is not what its content type says, or breaks a limit
    ├── GenerationError
    │   ├── CorruptGeneration    a file is missing, left over, or its digest differs
    │   └── UnsupportedGeneration  written by another format version or for another backbone
    ├── LearningError
    │   ├── CapacityExhausted    no free units or weights are left for the next session
    │   └── Diverged             the loss is no longer finite
    └── CertificateViolation  a learner broke what it promises about earlier sessions

A caller's mistake (a wrong shape, a setting out of range) is a `ValueError`.
"""

from __future__ import annotations


class EngineError(Exception):
    """Base of every error that the learning library raises on purpose."""


class AssetError(EngineError):
    """An asset could not be fetched, verified or converted."""


class InputError(EngineError):
    """A payload is not what its content type says, or breaks a limit."""


class GenerationError(EngineError):
    """A generation on disk cannot be used."""


class CorruptGeneration(GenerationError):
    """A generation's file is missing, left over, or its digest differs from the manifest."""


class UnsupportedGeneration(GenerationError):
    """A generation was written by another format version or for another backbone."""


class LearningError(EngineError):
    """A session could not be trained."""


class CapacityExhausted(LearningError):
    """No free units or weights are left for the next session."""


class Diverged(LearningError):
    """The training loss is no longer finite."""


class CertificateViolation(EngineError):
    """A learner broke what it promises about the classes of earlier sessions."""
