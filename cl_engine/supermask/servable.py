"""A generation of a supermask learner made ready to answer.

Nobody tells a sample's session, so the exact ridge head answers over all classes, and the subnetwork of
the session it is routed to adds its evidence about that session's classes:
sharpness * ridge + trust * (log P(class | session) + log n), n classes; a subnetwork that is undecided
adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.backbones.blockwise import feature_width
from cl_engine.errors import UnsupportedGeneration
from cl_engine.features import BaseFeatures, base_pass
from cl_engine.generation import Generation
from cl_engine.heads.prototypes import cosine_scores
from cl_engine.heads.ridge import ridge_scores
from cl_engine.learners.base import Prediction
from cl_engine.supermask.content import Content, read_content, read_settings
from cl_engine.supermask.learner_settings import LearnerSettings
from cl_engine.supermask.network import call


class Scorer:
    """Computes class scores from base features; what the learner's calibration and the servable share."""

    def __init__(self, settings: LearnerSettings, content: Content) -> None:
        self.settings = settings
        self.content = content
        self.members = [
            (content.class_subnetwork == s).nonzero().squeeze(1) for s in range(len(content.network.sessions))
        ]
        self.outputs = [content.class_output[members] for members in self.members]
        self._effective = lru_cache(maxsize=settings.resident)(content.network.effective)
        content.network.architecture.eval()

    def scores(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Score base features (B, D).

        Returns:
            Log-scores over all classes (B, C), and the distance to the nearest prototype (B,), on the CPU.
        """
        standard = self.content.standardiser(features)
        cosines = cosine_scores(standard, self.content.prototypes).cpu()
        scores = ridge_scores(standard, self.content.ridge_weights).cpu() * float(self.content.sharpness)
        if self.settings.trust and self.members:
            self._add_evidence(standard, cosines, scores)
        return scores, 1 - cosines.max(dim=1).values

    def _add_evidence(self, standard: Tensor, cosines: Tensor, scores: Tensor) -> None:
        """Add the subnetworks' evidence to the scores (B, C), in place."""
        routing = self.settings.routing
        if routing in ("ridge", "prototype"):
            nearest = (scores if routing == "ridge" else cosines).argmax(dim=1)
            route = self.content.class_subnetwork[nearest]
            rows = [(route == s).nonzero().squeeze(1) for s in range(len(self.members))]
        else:
            rows = [torch.arange(len(scores))] * len(self.members)
        evidence = [
            self._evidence(s, standard[own.to(standard.device)]) if len(own) else None
            for s, own in enumerate(rows)
        ]
        if routing == "entropy":
            surest = torch.stack([_relative_entropy(e) for e in evidence if e is not None]).argmin(dim=0)
            rows = [(surest == s).nonzero().squeeze(1) for s in range(len(self.members))]
            evidence = [e[own] for e, own in zip(evidence, rows, strict=True) if e is not None]
        for own, members, added in zip(rows, self.members, evidence, strict=True):
            if added is not None:
                scores[own[:, None], members] += self.settings.trust * added

    def _evidence(self, subnetwork: int, standard: Tensor) -> Tensor:
        """Return log P(class | session) + log n, (B, n): 0 where the subnetwork is undecided."""
        network = self.content.network
        outputs = self.outputs[subnetwork]
        logits = call(network.architecture, self._effective(subnetwork), standard).cpu()[:, outputs]
        return logits.log_softmax(dim=1) + torch.tensor(float(len(outputs))).log()


class SupermaskServable:
    """Answers for one generation; its tensors are its own, the backbone is shared and constant.

    Raises:
        UnsupportedGeneration: made for another backbone or by another method.
    """

    def __init__(self, backbone: BlockwiseBackbone, generation: Generation) -> None:
        if generation.backbone != backbone.id:
            raise UnsupportedGeneration(
                f"generation {generation.digest} belongs to backbone {generation.backbone}, this is "
                f"{backbone.id}"
            )
        self._backbone = backbone
        self.digest = generation.digest
        self.class_ids = generation.class_ids
        self.labels: Mapping[int, str] = {entry.id: entry.label for entry in generation.classes}
        settings = read_settings(generation)
        self._blocks = settings.feature_blocks
        self._content = read_content(generation, backbone.device)
        self._scorer = Scorer(settings, self._content)

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one payload to one input row; raises `InputError`."""
        return self._backbone.decode(payload, content_type)

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone, with every resident subnetwork unpacked."""
        content, settings = self._content, self._scorer.settings
        shared = (content.standardiser.mean, content.standardiser.scale, content.ridge_weights)
        held = (*shared, content.prototypes, *content.network.weights.values())
        norms = [norm for session in content.network.sessions for norm in session.norms.values()]
        unpacked = min(settings.resident, len(content.network.sessions)) * content.network.size * 4
        return sum(t.numel() * t.element_size() for t in (*held, *norms)) + unpacked

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch of inputs (B, ...); see `Servable.predict`."""
        return self.predict_from(base_pass(self._backbone, inputs, self._blocks, None))

    @torch.inference_mode()
    def predict_from(self, base: BaseFeatures) -> Prediction:
        """Classify from base features that hold at least this generation's blocks, the last ones last."""
        width = feature_width(self._backbone, self._blocks)
        scores, distances = self._scorer.scores(base.features[:, -width:])
        return Prediction(
            scores=torch.softmax(scores, dim=1),
            class_ids=torch.tensor(self.class_ids)[scores.argmax(dim=1)],
            unknown=calibration.unknown_score(distances, self._content.distances),
        )


def _relative_entropy(evidence: Tensor) -> Tensor:
    """Return each row's entropy over its largest value, log n; 1 for a session of one class."""
    count = evidence.shape[1]
    if count == 1:
        return torch.ones(len(evidence))
    largest = torch.tensor(float(count)).log()
    # E[log P + log n] = log n - H.
    return 1 - ((evidence - largest).exp() * evidence).sum(dim=1) / largest
