"""An SGDS generation made ready to answer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.errors import UnsupportedGeneration
from cl_engine.features import BaseFeatures
from cl_engine.generation import Generation
from cl_engine.learners.base import Prediction
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.content import read_content
from cl_engine.sgds.settings import SGDSSettings


class SGDSServable:
    """Answers for one generation; its tensors are its own, the backbone is shared and constant.

    Raises:
        UnsupportedGeneration: made for another backbone or by another method.
    """

    def __init__(self, backbone: BlockwiseBackbone, generation: Generation) -> None:
        if generation.backbone != backbone.id:
            raise UnsupportedGeneration(
                f"generation {generation.digest} belongs to backbone {generation.backbone}, "
                f"this daemon runs {backbone.id}"
            )
        content = read_content(generation)
        self._backbone = backbone
        self._digest = generation.digest
        self._class_ids = generation.class_ids
        self._labels = {entry.id: entry.label for entry in generation.classes}
        self.network = AnswerNetwork(backbone, SGDSSettings(**generation.settings), content)
        self._columns = torch.tensor(generation.class_ids, dtype=torch.int64)
        self._sharpness = float(content.sharpness)
        self._distances = content.distances.to(backbone.device)

    @property
    def digest(self) -> str:
        """Digest of the generation it answers for."""
        return self._digest

    @property
    def class_ids(self) -> tuple[int, ...]:
        """Permanent class ids, in the order of the score columns."""
        return self._class_ids

    @property
    def labels(self) -> Mapping[int, str]:
        """Class id to label."""
        return self._labels

    def decode(self, payload: bytes, content_type: str) -> Tensor:
        """Decode one payload to one input row.

        Raises:
            InputError: the payload is not what its content type says, or breaks a limit.
        """
        return self._backbone.decode(payload, content_type)

    def nbytes(self) -> int:
        """Bytes held on the device beyond the shared backbone."""
        return self.network.nbytes()

    @torch.inference_mode()
    def predict(self, inputs: Tensor) -> Prediction:
        """Classify a batch of inputs (B, ...); see `Servable.predict`."""
        return self._answer(self.network.base_features(inputs))

    @torch.inference_mode()
    def predict_from(self, base: BaseFeatures) -> Prediction:
        """Classify from the frozen pass alone; for evaluations that share it between generations."""
        return self._answer(self.network.adapted(base))

    def _answer(self, base: BaseFeatures) -> Prediction:
        scores, distance = self.network.scores(base)
        return Prediction(
            scores=torch.softmax(scores * self._sharpness, dim=1).cpu(),
            class_ids=self._columns[scores.argmax(dim=1).cpu()],
            unknown=calibration.unknown_score(distance, self._distances).cpu(),
        )
