"""The networks the masks select from: plain torch modules without biases or affine norms.

An architecture holds no state that counts. Weights, masks and normalisation statistics live in a
`MaskedNetwork` and are put in for each call, so any module of bias-free linear and convolution layers,
with `affine=False` batch norms, can be masked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Architecture(nn.Module, ABC):
    """A trunk that ends in penultimate features, and a bias-free linear head of fixed width."""

    head: nn.Linear

    @abstractmethod
    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return the features (B, F) that the head reads."""

    def forward(self, inputs: Tensor, *, penultimate: bool = False) -> Tensor:
        """Return logits (B, W) of the whole head, or the penultimate features (B, F)."""
        features = self.penultimate(inputs)
        if penultimate:
            return features
        logits: Tensor = self.head(features)
        return logits


class LeNet(Architecture):
    """The fully connected 784-300-100 network of the MNIST experiments; inputs (B, ...) are flattened."""

    def __init__(self, outputs: int, inputs: int = 784) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, 300, bias=False)
        self.second = nn.Linear(300, 100, bias=False)
        self.head = nn.Linear(100, outputs, bias=False)

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return features (B, 100)."""
        return functional.relu(self.second(functional.relu(self.first(inputs.flatten(1)))))


class FeatureMLP(Architecture):
    """A perceptron over frozen backbone features (B, D), with batch norm after each hidden layer.

    Args:
        inputs: D.
        hidden: width of each hidden layer, at least one.
        outputs: width of the head.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden is empty: give the width of at least one hidden layer")
        widths = (inputs, *hidden)
        self.layers = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width, affine=False) for width in hidden)
        self.head = nn.Linear(widths[-1], outputs, bias=False)

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return features (B, hidden[-1])."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            inputs = functional.relu(norm(layer(inputs)))
        return inputs


class TextCNN(Architecture):
    """Convolutions of several widths over frozen encoder states (B, L, D), max-pooled over the tokens.

    A text shorter than the widest kernel cannot be convolved: pad the states with zeros, which add
    nothing, for no layer has a bias.

    Args:
        inputs: D, 768 for BERT, 384 for MiniLM.
        outputs: width of the head.
        filters: filters of each kernel width.
        kernels: kernel widths, tokens.
    """

    def __init__(
        self, inputs: int, outputs: int, filters: int = 200, kernels: Sequence[int] = (3, 4, 5)
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(inputs, filters, kernel, bias=False) for kernel in kernels
        )
        self.head = nn.Linear(filters * len(kernels), outputs, bias=False)

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return features (B, filters * kernels)."""
        channels_first = inputs.transpose(1, 2)
        pooled = [functional.relu(conv(channels_first)).amax(dim=2) for conv in self.convolutions]
        return torch.cat(pooled, dim=1)


class ResNet18(Architecture):
    """The narrow ResNet18 of the CIFAR experiments, for images (B, C, H, W).

    Args:
        outputs: width of the head.
        width: channels of the first stage; each later stage has twice as many.
        channels: C.
    """

    def __init__(self, outputs: int, width: int = 20, channels: int = 3) -> None:
        super().__init__()
        self.stem = _Convolution(channels, width, kernel=3)
        blocks: list[nn.Module] = []
        before = width
        for stage in range(4):
            after = width << stage
            blocks.append(_Block(before, after, stride=1 if stage == 0 else 2))
            blocks.append(_Block(after, after, stride=1))
            before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, outputs, bias=False)

    def penultimate(self, inputs: Tensor) -> Tensor:
        """Return features (B, 8 * width)."""
        maps: Tensor = self.blocks(functional.relu(self.stem(inputs)))
        return maps.mean(dim=(2, 3))


class _Convolution(nn.Module):
    """A same-padded convolution and its batch norm."""

    def __init__(self, before: int, after: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.conv(inputs))
        return normalised


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, a masked 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _Convolution(before, after, kernel=3, stride=stride)
        self.second = _Convolution(after, after, kernel=3)
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else _Convolution(before, after, kernel=1, stride=stride)

    def forward(self, inputs: Tensor) -> Tensor:
        residual = self.second(functional.relu(self.first(inputs)))
        return functional.relu(residual + self.shortcut(inputs))
