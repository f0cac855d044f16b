"""Generations: immutable, content-addressed servable artefacts, in memory and on disk."""

from cl_engine.generation.content import ClassEntry, Generation
from cl_engine.generation.files import GenerationDirectory

__all__ = ["ClassEntry", "Generation", "GenerationDirectory"]
