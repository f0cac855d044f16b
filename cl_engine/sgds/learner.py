"""The SGDS learner: one class-incremental session, from the previous generation and new samples alone.

A session goes through these steps.

First session only, as an option: adapters for all classes alike are trained and then frozen for ever, under
   everything that follows (`start`).
0. Semantic strategy: each new class decides by prototype similarity to reuse or to allocate
   (`strategy`); where one reuses, the most related earlier session's units are borrowed, frozen.
1. Exploration and 2. compaction: the session's own bottleneck units are trained under random, then
   under top-K masks of the adapter inputs (`training`), beside exemplars of earlier classes where some
   are kept (`exemplars`).
3. Heads: the exact ridge statistics take the new samples in; the session's own head is fitted on its
   adapted features; the blend of the two is chosen on a part of the training samples that the adapters
   have not seen (`own_head`).
4. The certificate: nothing an earlier session answers with has changed (`certificate`).

What was found about the reconstruction (methods and figures in the README): units shared by all
sessions forget, exclusive ones do not; reading several layers of the frozen network gains more than
any mask.
"""

from __future__ import annotations

from pathlib import Path

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import Extract, extract
from cl_engine.generation import Generation
from cl_engine.learners.base import Progress, ProgressListener
from cl_engine.learners.table import check_origin, check_unchanged, class_table
from cl_engine.samples import SampleSet, SessionData
from cl_engine.sgds.answer import first_adapted_block
from cl_engine.sgds.content import METHOD, read_content
from cl_engine.sgds.forgetting import forget_class
from cl_engine.sgds.servable import SGDSServable
from cl_engine.sgds.session import FEATURES_SHARE, TRAINING_SHARE, Session
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.sgds.strategy import Decide, semantic_strategy

# A generation has one value of each for all its sessions: another one would change earlier answers.
ANSWERED_WITH = (
    "adapt_first_session",
    "adapter_blocks",
    "feature_blocks",
    "units_per_session",
    "density",
    "scale",
    "exclusive_units",
    "mask",
    "mask_scope",
    "inference",
    "head",
    "standardise",
)


class SGDSLearner:
    """Learner of the method `sgds`.

    Args:
        backbone: a plain vision transformer.
        settings: see `SGDSSettings`.
        extract: where base features come from.
        decide: how the classes of a session decide.
    """

    method = METHOD

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: SGDSSettings | None = None,
        extract: Extract = extract,
        decide: Decide = semantic_strategy,
    ) -> None:
        self.backbone, self.extract, self.decide = backbone, extract, decide
        self.settings = settings or SGDSSettings()
        self.first = first_adapted_block(backbone, self.settings)

    def servable(self, generation: Generation) -> SGDSServable:
        """Build the thing that answers requests from a generation.

        Raises:
            UnsupportedGeneration: it was made for another backbone or by another method.
        """
        return SGDSServable(self.backbone, generation)

    def learn(
        self,
        data: SessionData,
        previous: Generation | None,
        *,
        checkpoint: Path | None = None,
        on_progress: ProgressListener | None = None,
    ) -> Generation:
        """Run one session; see `Learner.learn`.

        Raises:
            CapacityExhausted: `max_units` are taken.
            Diverged: the loss is no longer finite.
            CertificateViolation: something of an earlier session would change.
            UnsupportedGeneration: the previous generation cannot be built on.
            ValueError: wrong classes, or a setting that earlier sessions answer with has changed.
        """
        report = on_progress or (lambda _: None)
        if previous is not None:
            check_origin(previous, METHOD, self.backbone.id)
            check_unchanged(previous, self.settings, ANSWERED_WITH)
        content = None if previous is None else read_content(previous)
        table = class_table(previous, data)
        base = self.extract(
            self.backbone,
            data.train,
            self.settings.feature_blocks,
            self.first,
            on_batch=lambda n: report(
                Progress("features", FEATURES_SHARE * n / max(1, len(data.train.labels)), {"samples": n})
            ),
        )
        session = Session(
            self.backbone, self.settings, self.extract, self.decide, data, previous, content, table, base
        )
        units = session.train_units(checkpoint, report)
        report(Progress("head", FEATURES_SHARE + TRAINING_SHARE))
        result = session.finish(units)
        report(Progress("head", 1.0))
        return result

    def forget(self, generation: Generation, class_id: int, samples: SampleSet) -> Generation:
        """Take a class out, exactly; see `forget_class`."""
        check_origin(generation, METHOD, self.backbone.id)
        check_unchanged(generation, self.settings, ANSWERED_WITH)
        return forget_class(
            self.backbone, self.extract, self.settings.feature_blocks, generation, class_id, samples
        )
