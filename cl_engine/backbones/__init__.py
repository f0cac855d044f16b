"""Frozen pre-trained networks, and how to load them."""

from cl_engine.backbones.frozen import Backbone, FrozenModel
from cl_engine.backbones.load import load_backbone
from cl_engine.backbones.vit import BlockAdapter, FrozenVisionTransformer

__all__ = ["Backbone", "BlockAdapter", "FrozenModel", "FrozenVisionTransformer", "load_backbone"]
