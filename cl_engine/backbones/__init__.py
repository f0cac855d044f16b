"""Frozen pre-trained networks, and how to load them."""

from cl_engine.backbones.blockwise import BlockAdapter, BlockwiseBackbone
from cl_engine.backbones.frozen import Backbone, DecodeLimits, FrozenModel
from cl_engine.backbones.load import load_backbone
from cl_engine.backbones.vit import FrozenVisionTransformer

__all__ = [
    "Backbone",
    "BlockAdapter",
    "BlockwiseBackbone",
    "DecodeLimits",
    "FrozenModel",
    "FrozenVisionTransformer",
    "load_backbone",
]
