"""Load a frozen backbone: a text encoder, or a timm model from a file, the catalogue or timm's hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed
from timm.models.tiny_vit import TinyVit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from cl_engine import assets
from cl_engine.backbones.digest import weights_digest
from cl_engine.backbones.frozen import DEFAULT_MAX_TOKENS, Backbone, FrozenModel
from cl_engine.backbones.precision import choose_device, choose_dtype
from cl_engine.backbones.tiny_vit import FrozenTinyViT
from cl_engine.backbones.vit import FrozenVisionTransformer
from cl_engine.errors import AssetError


def load_backbone(
    name: str,
    *,
    image_size: int = 224,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    weights: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Backbone:
    """Load a pre-trained network and freeze it: a timm model, or a text encoder of the asset catalogue.

    A plain vision transformer and a text encoder are `BlockwiseBackbone`s, which all methods need; any
    other model gives pooled features only.

    Args:
        name: timm model name, or the catalogue's name of a text encoder.
        image_size: side of the square input, pixels; a vision transformer's position embedding is
            resampled to it.
        max_tokens: a text encoder cuts texts to this many tokens.
        weights: local safetensors file with timm's names; empty: the asset catalogue, then the hub.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: `auto`, `float32` or `bfloat16`.

    Raises:
        AssetError: no source has the weights, or they do not fit the model.
        ValueError: unknown model name, or an input size the model cannot take.
    """
    if name in assets.text_encoders():
        if weights is not None:
            raise ValueError(
                f"weights {weights}: the text encoder {name!r} comes from the asset catalogue, with its "
                "vocabulary: leave weights out"
            )
        # Its tokeniser's library costs streams of images a moment that they need not spend.
        from cl_engine.text_encoder import load_text_encoder

        return load_text_encoder(name, max_tokens=max_tokens, device=device, dtype=dtype)
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"backbone {name!r} is neither a timm model (timm.list_models() has the names) nor a text "
            f"encoder ({', '.join(assets.text_encoders())})"
        )
    where = choose_device(device)
    model = _with_weights(name, image_size, _read_weights(name, weights))
    configuration = timm.data.resolve_model_data_config(model)
    return _kind(model)(
        id=f"{name}@{image_size}px-{weights_digest(model.state_dict())[:16]}",
        model=model,
        image_size=image_size,
        mean=configuration["mean"],
        std=configuration["std"],
        device=where,
        dtype=choose_dtype(dtype, where),
    )


def _kind(model: nn.Module) -> type[FrozenModel]:
    """Choose what a timm model is read as."""
    if isinstance(model, VisionTransformer) and all(isinstance(b, Block) for b in model.blocks):
        return FrozenVisionTransformer
    return FrozenTinyViT if isinstance(model, TinyVit) else FrozenModel


def _read_weights(name: str, path: Path | None) -> Mapping[str, Tensor] | None:
    if path is not None:
        try:
            return load_file(path)
        except Exception as error:
            raise AssetError(f"backbone weights {path}: not a readable safetensors file: {error}") from error
    return assets.backbone_weights(name)


def _with_weights(name: str, image_size: int, state: Mapping[str, Tensor] | None) -> nn.Module:
    sizes = {} if "img_size" not in _arguments(name) else {"img_size": image_size}
    if state is None:
        try:
            model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, **sizes)
        except Exception as error:
            raise AssetError(
                f"backbone {name!r}: not in the asset catalogue, and timm's hub did not give the weights "
                f"({type(error).__name__}: {error}). Put a safetensors file in backbone.weights"
            ) from error
        return model
    try:
        model = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    except AssertionError as error:
        raise ValueError(f"backbone {name!r} cannot take images of {image_size} px: {error}") from error
    state = dict(state)
    if isinstance(model, VisionTransformer) and model.pos_embed is not None:
        grid = list(model.patch_embed.grid_size)
        if state["pos_embed"].shape != model.pos_embed.shape:
            prefix = 0 if model.no_embed_class else model.num_prefix_tokens
            state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=prefix)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise AssetError(f"backbone {name!r}: the weights do not fit the model: {error}") from error
    return model


def _arguments(name: str) -> set[str]:
    """Return {'img_size'} where the architecture fixes its input size at construction."""
    architecture = name.split(".")[0]
    fixed = ("vit", "deit", "beit", "eva", "swin", "flexivit", "dino")
    return {"img_size"} if architecture.startswith(fixed) else set()
