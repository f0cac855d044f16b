"""One network that all sessions share, and the subnetwork each of them selects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.func import functional_call

from cl_engine.masks.packing import pack, unpack
from cl_engine.supermask.architectures import Architecture
from cl_engine.supermask.scores import signed_kaiming_constant
from cl_engine.supermask.seeding import generator


@dataclass(frozen=True, eq=False)
class Subnetwork:
    """What one session adds to the shared weights.

    Attributes:
        classes: number of classes; labels are 0 to classes - 1 and the head's first outputs.
        masks: bit-packed mask of each layer, uint8 (ceil(numel / 8),).
        norms: the session's own batch-norm statistics: running mean and variance of each norm.
        scores: the real scores behind the masks, float32, or empty. Only KKT reads them, for a later
            session to start from; they take 32 times the bytes of the masks.
    """

    classes: int
    masks: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    scores: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class MaskedNetwork:
    """An architecture, its shared weights and the sessions learnt so far; immutable.

    The architecture lends its structure to each call and must not be called from two threads at once;
    build one per thread.

    Attributes:
        architecture: the structure; its own parameters are never read.
        weights: shared weights of each layer, float32 (out, in, *kernel).
        sessions: the subnetworks, in order.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    sessions: tuple[Subnetwork, ...] = ()

    @classmethod
    def create(
        cls, build: Callable[[], Architecture], seed: int, device: torch.device | str = "cpu"
    ) -> MaskedNetwork:
        """Draw the shared weights, signed Kaiming constants, for an architecture.

        Args:
            build: makes the architecture, for example `lambda: LeNet(outputs=10)`.
            seed: decides the weights' signs.
            device: where the weights live and everything is computed.

        Raises:
            ValueError: the architecture has a bias or an affine norm, which masks cannot select from.
        """
        architecture = structure(build)
        weights = {
            name: signed_kaiming_constant(parameter.shape, generator(seed, "weights", name)).to(device)
            for name, parameter in architecture.named_parameters()
        }
        return cls(architecture, weights)

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return next(iter(self.weights.values())).device

    @property
    def head_width(self) -> int:
        """Outputs of the head: the most classes a session can have."""
        return self.architecture.head.out_features

    @cached_property
    def size(self) -> int:
        """Number of shared weights."""
        return sum(weight.numel() for weight in self.weights.values())

    def masks(self, session: int) -> dict[str, Tensor]:
        """Unpack a session's masks: one boolean tensor per layer, in the shape of its weights."""
        packed = self.sessions[session].masks
        return {
            name: unpack(packed[name], weight.shape).to(weight.device)
            for name, weight in self.weights.items()
        }

    def used(self, count: int | None = None) -> dict[str, Tensor]:
        """Join the masks of the first `count` sessions, by default all: True where one reads the weight."""
        joined: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            packed = torch.zeros((weight.numel() + 7) // 8, dtype=torch.uint8)
            for session in self.sessions[:count]:
                packed |= session.masks[name]
            joined[name] = unpack(packed, weight.shape).to(weight.device)
        return joined

    def effective(self, session: int) -> dict[str, Tensor]:
        """Return what the architecture computes with for one session: masked weights and its norms."""
        masked = {name: self.weights[name] * mask for name, mask in self.masks(session).items()}
        return masked | dict(self.sessions[session].norms)

    def logits(self, session: int, inputs: Tensor, batch_size: int = 256) -> Tensor:
        """Classify inputs (N, ...) with one session's subnetwork: logits (N, classes) on the CPU."""
        outputs = self._run(session, inputs, batch_size, penultimate=False)
        return outputs[:, : self.sessions[session].classes]

    def features(self, session: int, inputs: Tensor, batch_size: int = 256) -> Tensor:
        """Return one session's penultimate features (N, F) of inputs (N, ...), on the CPU."""
        return self._run(session, inputs, batch_size, penultimate=True)

    def extended(self, weights: Mapping[str, Tensor], subnetwork: Subnetwork) -> MaskedNetwork:
        """Return the network with one more session, and with the weights that it trained."""
        return replace(self, weights=weights, sessions=(*self.sessions, subnetwork))

    def fresh_norms(self) -> dict[str, Tensor]:
        """Return the statistics of a batch norm that has seen nothing: mean 0, variance 1."""
        return {
            name: torch.full(buffer.shape, 1.0 if name.endswith("running_var") else 0.0, device=self.device)
            for name, buffer in self.architecture.named_buffers()
        }

    @torch.no_grad()
    def _run(self, session: int, inputs: Tensor, batch_size: int, *, penultimate: bool) -> Tensor:
        effective = self.effective(session)
        self.architecture.eval()
        return torch.cat(
            [
                call(self.architecture, effective, batch.to(self.device), penultimate=penultimate).cpu()
                for batch in torch.split(inputs, batch_size)
            ]
        )


def structure(build: Callable[[], Architecture]) -> Architecture:
    """Build an architecture without allocating its parameters.

    Raises:
        ValueError: it has a bias or an affine norm, which masks cannot select from.
    """
    with torch.device("meta"):
        architecture = build()
    for name, parameter in architecture.named_parameters():
        if parameter.ndim < 2:
            raise ValueError(
                f"parameter {name!r} of {type(architecture).__name__} is a bias or an affine norm, which no "
                "mask selects from: build the layer with bias=False or affine=False"
            )
    for module in architecture.modules():
        # The count of batches only serves norms without a momentum; left out, it is nobody's state.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            del module.num_batches_tracked
            module.register_buffer("num_batches_tracked", None)
    return architecture


def call(
    architecture: Architecture, tensors: Mapping[str, Tensor], inputs: Tensor, *, penultimate: bool = False
) -> Tensor:
    """Run an architecture with these weights and norms; inputs of any numeric type become float32."""
    outputs: Tensor = functional_call(
        architecture, dict(tensors), (inputs.float(),), {"penultimate": penultimate}, strict=True
    )
    return outputs


def to_tensors(network: MaskedNetwork) -> dict[str, Tensor]:
    """Flatten a network to named tensors, ready for safetensors; `from_tensors` is the inverse."""
    flat = {f"weights/{name}": weight for name, weight in network.weights.items()}
    for index, session in enumerate(network.sessions):
        prefix = f"session/{index}"
        flat[f"{prefix}/classes"] = torch.tensor(session.classes)
        flat |= {f"{prefix}/masks/{name}": mask for name, mask in session.masks.items()}
        flat |= {f"{prefix}/norms/{name}": norm for name, norm in session.norms.items()}
        flat |= {f"{prefix}/scores/{name}": score for name, score in session.scores.items()}
    return flat


def from_tensors(
    build: Callable[[], Architecture], flat: Mapping[str, Tensor], device: torch.device | str = "cpu"
) -> MaskedNetwork:
    """Rebuild a network from what `to_tensors` made.

    Raises:
        ValueError: the tensors do not belong to the architecture.
    """
    architecture = structure(build)
    weights = {name: tensor.to(device) for name, tensor in group(flat, "weights/").items()}
    expected = {name: parameter.shape for name, parameter in architecture.named_parameters()}
    if {name: weight.shape for name, weight in weights.items()} != expected:
        raise ValueError(f"the weights do not fit {type(architecture).__name__}: build it as it was trained")
    sessions: list[Subnetwork] = []
    while f"session/{len(sessions)}/classes" in flat:
        own = group(flat, f"session/{len(sessions)}/")
        session = Subnetwork(
            classes=int(own["classes"]),
            masks={name: mask.cpu() for name, mask in group(own, "masks/").items()},
            norms={name: norm.to(device) for name, norm in group(own, "norms/").items()},
            scores={name: score.to(device) for name, score in group(own, "scores/").items()},
        )
        norms = {name for name, _ in architecture.named_buffers()}
        if session.masks.keys() != weights.keys() or session.norms.keys() != norms:
            raise ValueError(f"session {len(sessions)}: masks or norms are missing or left over")
        sessions.append(session)
    return MaskedNetwork(architecture, weights, tuple(sessions))


def packed(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bit-pack each layer's mask."""
    return {name: pack(mask) for name, mask in masks.items()}


def group(flat: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the tensors under a prefix and drop it from their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in flat.items() if name.startswith(prefix)}
