"""Train one session's subnetwork: SupSup, ExSSNeT and the SSNeT ablation.

A session has a mask phase, in which only its scores train (straight-through, top share by |score|), and,
unless it is SupSup's, a weight phase on fixed masks. ExSSNeT trains the weights under
M_t AND NOT (M_0 OR ... OR M_{t-1}), so nothing an earlier session reads can change; SSNeT trains all under
M_t and forgets. The trainable weights are held as a vector of their own and put into the frozen ones, so
no optimiser state, rounding or weight decay can reach a weight outside of it.

The published code has six quirks that change results; here is what is decided about each:

Q1  It selects models on validation data that is the test data. Here nothing is selected: the state after
    the last epoch counts, and no data but the session's training samples is looked at.
Q2  With a weight phase it trains masks at the weights' learning rate, too, and ignores the masks' own.
    Here `mask_lr` is the masks' and `weight_lr` the weights'.
Q3  It combines a cosine with a plateau rule that takes rising accuracy for a plateau, which ends mask
    training after some thirty epochs. Here each phase has the cosine alone, to 0 over the phase.
Q4  Its weight phase starts from the last scores, its next session may start from the best of either
    phase. Here every step starts from the last state of the one before.
Q5  KKT is off unless asked for. Here, too (`kkt`), and what it did is in the result.
Q6  Its `knn_all` adds up scores inside an earlier session's tensor and so destroys that session's mask.
    Here the mean is a new tensor, and earlier sessions are read from packed masks that nothing writes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import structlog
import torch
from torch import Tensor
from torch.nn import functional

from cl_engine.backbones.precision import float32_products
from cl_engine.errors import Diverged
from cl_engine.learning_rate import set_cosine_rate
from cl_engine.masks.exclusive import exclusive
from cl_engine.supermask.capacity import admit, session_settings
from cl_engine.supermask.kkt import Transfer, borrowed_scores, transfer
from cl_engine.supermask.network import MaskedNetwork, Subnetwork, call, group, packed
from cl_engine.supermask.scores import (
    fresh_scores,
    straight_through_mask,
    straight_through_threshold,
    threshold_masks,
    top_masks,
)
from cl_engine.supermask.seeding import generator
from cl_engine.supermask.settings import SupermaskSettings

log = structlog.get_logger(__name__)

Phase = Literal["mask", "weights"]


@dataclass(frozen=True)
class EpochEnd:
    """What is known after an epoch.

    Attributes:
        phase: `mask` or `weights`.
        epoch: epochs of the phase that are finished, from 1.
        epochs: epochs of the phase.
        loss: mean cross-entropy of the epoch's training batches.
        accuracy: share of right answers in them, 0 to 1.
        preview: builds the network as it would be if the session ended here; call it before returning.
        checkpoint: builds named tensors from which `train_session(resume=...)` goes on; call it before
            returning.
    """

    phase: Phase
    epoch: int
    epochs: int
    loss: float
    accuracy: float
    preview: Callable[[], MaskedNetwork]
    checkpoint: Callable[[], dict[str, Tensor]]


EpochListener = Callable[[EpochEnd], None]


@dataclass(frozen=True)
class TrainedSession:
    """The outcome of a session.

    Attributes:
        network: the network with the session added.
        densities: the density of each layer's mask.
        exclusive_share: share of the mask that no earlier mask holds: the weights `exssnet` trained.
        transfer: what KKT found; None where it is off.
    """

    network: MaskedNetwork
    densities: Mapping[str, float]
    exclusive_share: float
    transfer: Transfer | None


def train_session(
    network: MaskedNetwork,
    inputs: Tensor,
    labels: Tensor,
    settings: SupermaskSettings,
    *,
    seed: int = 0,
    resume: Mapping[str, Tensor] | None = None,
    on_epoch: EpochListener | None = None,
) -> TrainedSession:
    """Train the next session of a network and return the network with it; the given one stays as it is.

    The same network, data, settings and seed give the same bits on one machine with the same number of
    threads, whether or not training was interrupted after an epoch and resumed.

    Args:
        network: the sessions learnt so far.
        inputs: training inputs (N, ...), of any numeric type, normalised as the architecture wants them.
        labels: int64 (N,), 0 to classes - 1 within the session; the head's further outputs are trained
            to stay low (SupSup's superfluous neurons).
        settings: the method and its settings.
        seed: everything random derives from it and the session's index.
        resume: what an earlier run's `EpochEnd.checkpoint` made.
        on_epoch: called after every epoch.

    Raises:
        ValueError: labels do not fit, there are too few samples, or the checkpoint is of another session.
        CapacityExhausted: no room is left, see `cl_engine.supermask.capacity.admit`.
        Diverged: the loss is no longer finite.
    """
    _check_labels(network, inputs, labels)
    if resume is not None and not resumes(resume, network, inputs, labels, settings, seed):
        raise ValueError("resume belongs to another session, seed, settings or data: start without it")
    with float32_products(tf32=settings.precision == "tf32"):
        return _Run(network, inputs, labels, settings, seed, resume, on_epoch).finish()


def resumes(
    checkpoint: Mapping[str, Tensor],
    network: MaskedNetwork,
    inputs: Tensor,
    labels: Tensor,
    settings: SupermaskSettings,
    seed: int,
) -> bool:
    """Tell whether a checkpoint was made by a session with these arguments."""
    expected = _fingerprint(network, inputs, labels, settings, seed)
    return torch.equal(checkpoint["fingerprint"], expected)


class _Run:
    """One session while it trains: the tensors that change, and what an epoch does to them."""

    def __init__(
        self,
        network: MaskedNetwork,
        inputs: Tensor,
        labels: Tensor,
        settings: SupermaskSettings,
        seed: int,
        resume: Mapping[str, Tensor] | None,
        on_epoch: EpochListener | None,
    ) -> None:
        self.network = network
        self.inputs = inputs
        self.labels = labels
        self.settings = session_settings(network, settings)
        self.seed = seed
        self.on_epoch = on_epoch
        self.session = len(network.sessions)
        self.fingerprint = _fingerprint(network, inputs, labels, settings, seed)
        self.densities = admit(network, settings)
        self.resume = resume
        if resume is None:
            self.transfer = transfer(network, inputs, labels, settings, seed)
            self.scores = self._first_scores()
            self.norms = network.fresh_norms()
        else:
            self.transfer = Transfer(
                tuple(resume["kkt/accuracies"].tolist()), tuple(resume["kkt/borrowed"].tolist())
            )
            self.scores = self._restored("scores/")
            self.norms = self._restored("norms/")
        self.masks: dict[str, Tensor] | None = None
        self.trained: dict[str, tuple[Tensor, Tensor]] = {}

    def finish(self) -> TrainedSession:
        self._mask_phase()
        self.masks = self._selected()
        used = self.network.used()
        own = {name: exclusive(mask, [used[name]]) for name, mask in self.masks.items()}
        share = _share(own, self.masks)
        if self.settings.weight_epochs:
            editable = own if self.settings.method == "exssnet" else self.masks
            if share == 0 and self.settings.method == "exssnet":
                log.warning("session.no_exclusive_weights", session=self.session)
            self._weight_phase(editable)
        return TrainedSession(
            network=self._result(),
            densities={name: mask.double().mean().item() for name, mask in self.masks.items()},
            exclusive_share=share,
            transfer=self.transfer if self.settings.kkt != "off" else None,
        )

    def _mask_phase(self) -> None:
        for score in self.scores.values():
            score.requires_grad_()
        weights = self.network.weights

        def effective() -> dict[str, Tensor]:
            if self.settings.selection == "threshold":
                return {
                    name: weights[name] * straight_through_threshold(score)
                    for name, score in self.scores.items()
                }
            return {
                name: weights[name] * straight_through_mask(score, self.densities[name])
                for name, score in self.scores.items()
            }

        self._fit("mask", self.scores, effective, self.settings.mask_epochs, self.settings.mask_lr)
        self.scores = {name: score.detach() for name, score in self.scores.items()}

    def _selected(self) -> dict[str, Tensor]:
        """Return the masks of the scores as they are now."""
        if self.settings.selection == "threshold":
            return threshold_masks(self.scores)
        return top_masks(self.scores, self.densities)

    def _weight_phase(self, editable: Mapping[str, Tensor]) -> None:
        assert self.masks is not None
        indices = {name: mask.flatten().nonzero().squeeze(1) for name, mask in editable.items()}
        indices = {name: index for name, index in indices.items() if len(index)}
        restored = self._restored("values/")
        values = {
            name: restored.get(name, self.network.weights[name].flatten()[index]).requires_grad_()
            for name, index in indices.items()
        }
        self.trained = {name: (indices[name], values[name]) for name in indices}
        masked = {name: self.network.weights[name] * mask for name, mask in self.masks.items()}

        def effective() -> dict[str, Tensor]:
            return _put(masked, self.trained)

        self._fit("weights", values, effective, self.settings.weight_epochs, self.settings.weight_lr)

    def _fit(
        self,
        phase: Phase,
        leaves: Mapping[str, Tensor],
        effective: Callable[[], dict[str, Tensor]],
        epochs: int,
        rate: float,
    ) -> None:
        """Run what is left of a phase's epochs over these leaf tensors."""
        if not leaves:
            return
        optimiser = torch.optim.Adam(leaves.values(), lr=rate)
        done = self._resume_phase(phase, leaves, optimiser, epochs)
        architecture, device = self.network.architecture, self.network.device
        autocast = torch.autocast(
            device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16", cache_enabled=False
        )
        steps = math.ceil(len(self.labels) / self.settings.batch_size)
        for epoch in range(done, epochs):
            architecture.train()
            total_loss = torch.zeros((), dtype=torch.float64, device=device)
            right = torch.zeros((), dtype=torch.int64, device=device)
            for step, rows in enumerate(self._batches(phase, epoch, steps)):
                set_cosine_rate(optimiser, rate, (epoch * steps + step) / (epochs * steps))
                batch, target = self.inputs[rows].to(device), self.labels[rows].to(device)
                with autocast:
                    logits = call(architecture, effective() | self.norms, batch)
                loss = functional.cross_entropy(logits.float(), target)
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                total_loss += loss.detach() * len(rows)
                right += (logits.detach().argmax(dim=1) == target).sum()
            mean_loss = total_loss.item() / len(self.labels)
            if not math.isfinite(mean_loss):
                raise Diverged(
                    f"session {self.session}: the {phase} phase's loss is {mean_loss} in epoch {epoch + 1}: "
                    f"lower {'mask_lr' if phase == 'mask' else 'weight_lr'} (now {rate})"
                )
            if self.on_epoch is not None:
                self.on_epoch(
                    EpochEnd(
                        phase=phase,
                        epoch=epoch + 1,
                        epochs=epochs,
                        loss=mean_loss,
                        accuracy=right.item() / len(self.labels),
                        preview=self._result,
                        checkpoint=partial(self._checkpoint, phase, epoch + 1, leaves, optimiser),
                    )
                )

    def _batches(self, phase: Phase, epoch: int, steps: int) -> Iterator[Tensor]:
        """Shuffle the rows into batches of nearly equal size: a last batch of one has no variance."""
        random = generator(self.seed, self.session, "shuffle", phase, epoch)
        return iter(torch.randperm(len(self.labels), generator=random).tensor_split(steps))

    def _first_scores(self) -> dict[str, Tensor]:
        if self.transfer.borrowed:
            return borrowed_scores(self.network, self.transfer.borrowed)
        return {
            name: fresh_scores(weight.shape, generator(self.seed, self.session, "scores", name)).to(
                weight.device
            )
            for name, weight in self.network.weights.items()
        }

    def _result(self) -> MaskedNetwork:
        """Build the network as it is now; nothing in it changes when training goes on."""
        masks = self.masks if self.masks is not None else self._selected()
        scores = {name: score.detach().clone() for name, score in self.scores.items()}
        subnetwork = Subnetwork(
            classes=int(self.labels.max()) + 1,
            masks=packed(masks),
            norms={name: norm.clone() for name, norm in self.norms.items()},
            scores=scores if self.settings.keeps_scores else {},
        )
        trained = {name: (index, values.detach()) for name, (index, values) in self.trained.items()}
        return self.network.extended(_put(self.network.weights, trained), subnetwork)

    def _checkpoint(
        self, phase: Phase, done: int, leaves: Mapping[str, Tensor], optimiser: torch.optim.Adam
    ) -> dict[str, Tensor]:
        flat = {
            "fingerprint": self.fingerprint,
            "cursor": torch.tensor([0 if phase == "mask" else 1, done]),
            "kkt/accuracies": torch.tensor(self.transfer.accuracies, dtype=torch.float64),
            "kkt/borrowed": torch.tensor(self.transfer.borrowed, dtype=torch.int64),
        }
        flat |= {f"scores/{name}": score for name, score in self.scores.items()}
        flat |= {f"norms/{name}": norm for name, norm in self.norms.items()}
        flat |= {f"values/{name}": values for name, (_, values) in self.trained.items()}
        for name, leaf in leaves.items():
            flat |= {f"adam/{name}/{key}": moment for key, moment in optimiser.state[leaf].items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in flat.items()}

    def _restored(self, prefix: str) -> dict[str, Tensor]:
        found = group(self.resume or {}, prefix)
        return {name: tensor.to(self.network.device).clone() for name, tensor in found.items()}

    def _resume_phase(
        self, phase: Phase, leaves: Mapping[str, Tensor], optimiser: torch.optim.Adam, epochs: int
    ) -> int:
        """Put a checkpoint's moments into the optimiser and return how many epochs are done."""
        if self.resume is None:
            return 0
        reached, done = self.resume["cursor"].tolist()
        if reached != (0 if phase == "mask" else 1):
            return epochs if phase == "mask" else 0
        moments = {index: self._restored(f"adam/{name}/") for index, name in enumerate(leaves)}
        optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
        return int(done)


def _put(weights: Mapping[str, Tensor], trained: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Replace the trained entries of each layer, given as flat indices and values."""
    changed = {
        name: weights[name].flatten().index_copy(0, index, values).view_as(weights[name])
        for name, (index, values) in trained.items()
    }
    return dict(weights) | changed


def _share(part: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> float:
    return sum(int(mask.sum()) for mask in part.values()) / sum(int(mask.sum()) for mask in whole.values())


def _check_labels(network: MaskedNetwork, inputs: Tensor, labels: Tensor) -> None:
    if len(inputs) != len(labels) or labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64, one per input ({len(inputs)}), is {labels.dtype} {tuple(labels.shape)}"
        )
    if len(labels) < 2:
        raise ValueError(f"the session has {len(labels)} samples: batch statistics need at least 2")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= network.head_width:
        raise ValueError(
            f"labels go from {low} to {high}, the head has {network.head_width} outputs: number the "
            "session's classes from 0, and give the architecture the outputs its largest session needs"
        )


def _fingerprint(
    network: MaskedNetwork, inputs: Tensor, labels: Tensor, settings: SupermaskSettings, seed: int
) -> Tensor:
    """Hash what decides a session, except the inputs' content, which may be large: only their shape."""
    described = f"{settings.model_dump_json()} {seed} {len(network.sessions)} {tuple(inputs.shape)}"
    digest = hashlib.sha256(described.encode())
    for tensor in (*network.weights.values(), labels):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
