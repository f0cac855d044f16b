"""Small data and networks on which a supermask session trains in a fraction of a second."""

from __future__ import annotations

import torch
from torch import Tensor

from cl_engine.supermask.architectures import FeatureMLP, LeNet
from cl_engine.supermask.network import MaskedNetwork
from cl_engine.supermask.settings import SupermaskSettings
from cl_engine.supermask.training import train_session

# Tensors this small gain nothing from threads and lose much where processes share the cores.
torch.set_num_threads(1)

DIMENSIONS = 32


def blobs(session: int, samples: int = 96, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Draw well separated Gaussian classes, different in each session: inputs (N, 32) and labels (N,)."""
    random = torch.Generator().manual_seed(session)
    centres = torch.randn(classes, DIMENSIONS, generator=random)
    labels = torch.arange(samples) % classes
    return centres[labels] + 0.6 * torch.randn(samples, DIMENSIONS, generator=random), labels


def perceptron(outputs: int = 3) -> FeatureMLP:
    """Build a network with norms."""
    return FeatureMLP(DIMENSIONS, [32, 24], outputs)


def without_norms(outputs: int = 3) -> LeNet:
    """Build a network without norms."""
    return LeNet(outputs, inputs=DIMENSIONS)


def quick(**changes: object) -> SupermaskSettings:
    """Return settings for a session of a fraction of a second."""
    return SupermaskSettings.model_validate(
        {"epochs": 6, "density": 0.2, "weight_lr": 0.01, "batch_size": 32} | changes
    )


def trained(network: MaskedNetwork, sessions: int, settings: SupermaskSettings) -> MaskedNetwork:
    """Train this many more sessions on `blobs`, seed 1."""
    for _ in range(sessions):
        inputs, labels = blobs(len(network.sessions))
        network = train_session(network, inputs, labels, settings, seed=1).network
    return network
