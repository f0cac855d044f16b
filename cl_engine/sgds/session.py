"""One SGDS session at work: from the frozen pass to the next generation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_engine import calibration
from cl_engine.backbones import BlockwiseBackbone
from cl_engine.checkpoint import load_checkpoint, save_checkpoint
from cl_engine.errors import CapacityExhausted
from cl_engine.features import BaseFeatures, Extract
from cl_engine.generation import ClassEntry, Generation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics, Standardiser
from cl_engine.heads.ridge import START_STRENGTH, fold_of
from cl_engine.learners.base import Progress, ProgressListener
from cl_engine.samples import SessionData
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.certificate import certify
from cl_engine.sgds.content import METHOD, Content, LearnerState, read_learner_state
from cl_engine.sgds.exemplars import Exemplars
from cl_engine.sgds.family import family_of, join, subspace_features, with_family_heads
from cl_engine.sgds.own_head import OwnHead, OwnSamples
from cl_engine.sgds.relation import overlap_similarity_correlation
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.sgds.start import empty_content, first_session_adapters
from cl_engine.sgds.strategy import (
    Choice,
    Decide,
    Strategy,
    keep_probabilities,
    session_to_borrow,
    with_decision,
)
from cl_engine.sgds.training import TrainedUnits, TrainingInput, UnitTrainer
from cl_engine.shared_adapters import adapted_base, kept_from_adapters

# Share of a session's time, for the progress bar: the frozen pass, the two phases, the heads.
FEATURES_SHARE, TRAINING_SHARE = 0.35, 0.55


class Session:
    """One session's working state: what `learn` knows once the frozen pass is done."""

    def __init__(
        self,
        backbone: BlockwiseBackbone,
        settings: SGDSSettings,
        extract: Extract,
        decide: Decide,
        data: SessionData,
        previous: Generation | None,
        content: Content | None,
        table: tuple[ClassEntry, ...],
        base: BaseFeatures,
    ) -> None:
        self.backbone, self.settings, self.extract, self.decide = backbone, settings, extract, decide
        self.data, self.previous, self.table, self.base = data, previous, table, base
        column_of = {entry.id: column for column, entry in enumerate(table)}
        self.columns = torch.tensor([column_of[int(c)] for c in data.train.labels], dtype=torch.int64)
        self.new_columns = torch.tensor([column_of[c] for c in data.new_classes], dtype=torch.int64)
        self.validation = kept_from_adapters(data.train.ids, settings.validation_fraction)
        if content is None:
            assert base.tokens is not None
            fitted = ~self.validation
            shared = first_session_adapters(
                backbone,
                settings,
                base.tokens[fitted.to(base.tokens.device)],
                self.columns[fitted],
                data.seed,
            )
        else:
            shared = content.shared
        self.shared = None if shared is None else shared.adapter(backbone)
        self.base = base = adapted_base(backbone, base, settings.feature_blocks, shared)
        if content is None:
            content = empty_content(backbone, settings, base, shared)
            self.state = LearnerState(
                RidgeStatistics.empty(base.features.shape[1]),
                PrototypeStatistics.empty(base.features.shape[1]),
                torch.zeros(0, self.settings.adapter_blocks, self.backbone.width),
                START_STRENGTH,
            )
        else:
            assert previous is not None
            self.state = read_learner_state(previous.learner_state, self.backbone.device)
        self.content = content
        self.standard = Standardiser(
            content.mean.to(self.backbone.device), content.scale.to(self.backbone.device)
        )(base.features)
        self.prototypes = self.state.prototypes.updated(self.standard, self.columns, len(table))
        self.strategy = self._strategy()
        self.family = self._family()
        # As many as there are new samples: what a session costs must not grow with the classes before it.
        kept = self.state.exemplars if settings.exemplars_per_class else None
        self.replayed = (
            None if kept is None else kept.drawn(len(self.columns), _session_seed(data.seed, data.session))
        )

    # -- steps

    def train_units(self, checkpoint: Path | None, report: ProgressListener) -> TrainedUnits | None:
        """Run both phases; None where the session has no new class to train for, or joins a family."""
        if not len(self.new_columns) or self.family is not None:
            return None
        trainer = UnitTrainer(self.backbone, self.settings, self._training_input())
        key = self._checkpoint_key()
        if checkpoint is not None and (found := load_checkpoint(checkpoint, key)) is not None:
            trainer.restore(found)
        while not trainer.finished:
            phase, epoch = trainer.phase, trainer.epoch

            def step(done: float, epoch: int = epoch, phase: str = phase) -> None:
                share = FEATURES_SHARE + TRAINING_SHARE * (epoch + done) / trainer.epochs
                report(Progress(phase, share, {"epoch": epoch}))

            loss = trainer.run_epoch(step)
            if checkpoint is not None:
                save_checkpoint(checkpoint, key, trainer.checkpoint())
            share = FEATURES_SHARE + TRAINING_SHARE * trainer.epoch / trainer.epochs
            report(Progress(phase, share, {"epoch": trainer.epoch, "loss": loss}))
        return trainer.result()

    def finish(self, units: TrainedUnits | None) -> Generation:
        """Fit the heads, certify, and put the generation together."""
        classes = len(self.table)
        folds = fold_of(self.data.train.ids)
        # The blend is judged on samples that neither the adapters nor the base head have seen, so the
        # statistics take them in last.
        fitted = ~self.validation
        ridge = self.state.ridge.updated(self.standard[fitted], self.columns[fitted], folds[fitted], classes)
        unseen_weights = ridge.solve(self.state.strength).float()
        seen = self.validation
        ridge = ridge.updated(self.standard[seen], self.columns[seen], folds[seen], classes)
        strength = ridge.choose_strength()
        content = replace(
            self.content,
            prototypes=self.prototypes.prototypes(),
            base_weights=unseen_weights.cpu(),
            class_masks=self._class_masks(units),
        )
        if units is not None:
            head = OwnHead(self.backbone, self.settings, self._own_samples())
            content = head.append(content, units, self._borrowed())
        elif self.family is not None:
            content = join(content, self.family, len(self.new_columns), self.settings.family_weight)
        families = self._families(content, founded=units is not None)
        content = with_family_heads(content, families)
        state = LearnerState(
            ridge, self.prototypes, self._counters(units), strength, self._exemplars(), families
        )
        # Contiguous, so that the products in memory and after a load take the same path, bit for bit.
        content = replace(content, base_weights=ridge.solve(strength).float().cpu().contiguous())
        content = self._calibrated(content)
        if self.settings.exclusive_units:
            certificate = certify(None if self.previous is None else self.content, content)
        else:
            certificate = {"promise": "none: exclusive_units is off", "holds": True}
        return Generation(
            method=METHOD,
            backbone=self.backbone.id,
            session=self.data.session,
            settings=self.settings.model_dump(),
            classes=self.table,
            tensors=content.tensors(),
            masks=content.masks(),
            learner_state=state.tensors(),
            evaluation={"strategy": self._strategy_report(content), "ridge_strength": strength},
            certificate=certificate,
            parent=None if self.previous is None else self.previous.digest,
        )

    # -- pieces

    def _strategy(self) -> Strategy | None:
        if not len(self.new_columns):
            return None
        old = len(self.content.class_subspace)
        means = self.prototypes.prototypes()
        decided = self.decide(
            means[self.new_columns],
            means[:old],
            temperature=self.settings.temperature,
            count_normalised=self.settings.count_normalised,
        )
        return with_decision(decided, self.settings.decision, old)

    def _family(self) -> int | None:
        """Return the founder's subspace of the family that the session joins."""
        if not len(self.new_columns) or not self.settings.families:
            return None
        means = self.prototypes.prototypes()
        return family_of(
            means[self.new_columns],
            means[: len(self.content.class_subspace)],
            self.content.class_subspace,
            list(self.state.families),
            temperature=self.settings.temperature,
            threshold=self.settings.kinship,
        )

    def _families(self, content: Content, *, founded: bool) -> dict[int, RidgeStatistics]:
        """Add the session's samples to the sums of their families, and found one with a new subspace."""
        families = dict(self.state.families)
        if founded and len(families) < self.settings.families:
            families[len(content.subspaces) - 1] = RidgeStatistics.empty(content.subspace_head.shape[0] - 1)
        if not families:
            return families
        network = AnswerNetwork(self.backbone, self.settings, content)
        subspaces, folds = content.class_subspace[self.columns], fold_of(self.data.train.ids)
        assert self.base.tokens is not None
        for founder, statistics in families.items():
            rows = (subspaces == founder).nonzero().squeeze(1)
            tokens, columns = self.base.tokens[rows.to(self.backbone.device)], self.columns[rows]
            features = subspace_features(network, tokens, columns, founder, self.settings.batch_size)
            # Without any sample too: the class table has grown.
            families[founder] = statistics.updated(
                features, columns, folds[rows], len(content.class_subspace)
            )
        return families

    def _borrowed(self) -> int | None:
        if self.strategy is None or self.family is not None or not self.settings.borrow:
            return None
        return session_to_borrow(self.strategy, self.content.class_subspace, len(self.content.subspaces))

    def _training_input(self) -> TrainingInput:
        assert self.strategy is not None
        assert self.base.tokens is not None
        settings, device = self.settings, self.backbone.device
        taken = len(self.content.subspaces) * settings.units_per_session
        if settings.exclusive_units and taken + settings.units_per_session > settings.max_units:
            raise CapacityExhausted(
                f"{taken} of max_units {settings.max_units} bottleneck units are taken and the session needs "
                f"{settings.units_per_session}: raise max_units or lower units_per_session"
            )
        chosen = (torch.isin(self.columns, self.new_columns) & ~self.validation).nonzero().squeeze(1)
        row_of = {int(column): row for row, column in enumerate(self.new_columns)}
        borrowed = self._borrowed()
        units = self.content.subspaces
        tokens = self.base.tokens[chosen.to(device)]
        columns = self.columns[chosen]
        if self.replayed is not None:
            tokens = torch.cat([tokens, self.replayed.tokens])
            columns = torch.cat([columns, self.replayed.columns])
            for column in sorted(set(self.replayed.columns.tolist())):
                row_of[column] = len(row_of)
        return TrainingInput(
            tokens=tokens,
            rows=torch.tensor([row_of[int(c)] for c in columns], dtype=torch.int64),
            probabilities=self._keep_probabilities(self.strategy),
            start=units.last() if len(units) and not settings.exclusive_units else None,
            shared=self.shared,
            borrowed_down=None if borrowed is None else units.down[borrowed].to(device),
            borrowed_up=None if borrowed is None else units.up[borrowed].to(device),
            activation_mean=self.content.activation_mean.to(device),
            activation_scale=self.content.activation_scale.to(device),
            seed=_session_seed(self.data.seed, self.data.session),
        )

    def _keep_probabilities(self, strategy: Strategy) -> Tensor:
        settings = self.settings
        if settings.mask != "counters":
            share = settings.density if settings.mask == "random" else 1.0
            return torch.full((len(self.new_columns), *self.state.counters.shape[1:]), share)
        return keep_probabilities(
            strategy,
            self.state.counters,
            reuse_sharpness=settings.reuse_sharpness,
            allocate_sharpness=settings.allocate_sharpness,
            floor=settings.probability_floor,
        )

    def _counters(self, units: TrainedUnits | None) -> Tensor:
        """Append those of the new classes; what joins a family lives on the activations of its classes."""
        counters = self.state.counters
        if units is not None:
            return torch.cat([counters, units.counters])
        if self.family is None:
            return counters
        kin = counters[self.content.class_subspace == self.family].mean(dim=0)
        return torch.cat([counters, kin.expand(len(self.new_columns), -1, -1)])

    def _class_masks(self, units: TrainedUnits | None) -> Tensor:
        """Append those of the new classes; what joins a family has its session's."""
        masks = self.content.class_masks
        if units is not None:
            return torch.cat([masks, units.class_masks])
        if self.family is None:
            return masks
        own = self.content.subspaces.input_masks[self.family]
        return torch.cat([masks, own.expand(len(self.new_columns), -1, -1)])

    def _own_samples(self) -> OwnSamples:
        """Select the samples of new classes: those of known ones only refresh the exact statistics."""
        own = torch.isin(self.columns, self.new_columns).nonzero().squeeze(1)
        return OwnSamples(
            self.base.rows(own.to(self.backbone.device)),
            self.columns[own],
            self.new_columns,
            self.validation[own],
            self.replayed,
        )

    def _exemplars(self) -> Exemplars | None:
        """Return the stored samples of all classes, the new ones included."""
        count, before = self.settings.exemplars_per_class, self.state.exemplars
        if not count:
            return None
        if not len(self.new_columns):
            return before
        own = torch.isin(self.columns, self.new_columns).nonzero().squeeze(1)
        ids = [self.data.train.ids[i] for i in own.tolist()]
        assert self.base.tokens is not None
        tokens = self.base.tokens[own.to(self.backbone.device)]
        chosen = Exemplars.chosen(tokens, self.columns[own], ids, count)
        return chosen if before is None else before.extended(chosen)

    @torch.no_grad()
    def _calibrated(self, content: Content) -> Content:
        """Fit sharpness and the distance table on the holdout samples of the session's classes."""
        holdout = self.data.holdout
        new = [i for i, label in enumerate(holdout.labels.tolist()) if label in self.data.new_classes]
        if not new:
            return content
        network = AnswerNetwork(self.backbone, self.settings, content)
        base = network.adapted(
            self.extract(self.backbone, holdout, self.settings.feature_blocks, network.first, indices=new)
        )
        parts = [network.scores(base.rows(part)) for part in torch.split(torch.arange(len(new)), 32)]
        column_of = {entry.id: column for column, entry in enumerate(self.table)}
        truth = torch.tensor([column_of[int(holdout.labels[i])] for i in new])
        sharpness = calibration.fit_sharpness(torch.cat([scores for scores, _ in parts]).cpu(), truth)
        distances = torch.cat([distance for _, distance in parts])
        return replace(
            content,
            sharpness=torch.tensor([sharpness]),
            distances=calibration.merge_distances(content.distances, distances),
        )

    def _strategy_report(self, content: Content) -> Mapping[str, Any]:
        """Describe what each new class decided, and how mask overlap follows prototype similarity."""
        if self.strategy is None:
            return {}
        return {
            "choices": {
                str(c): choice.value
                for c, choice in zip(self.data.new_classes, self.strategy.choices, strict=True)
            },
            "reuse_share": sum(c is Choice.REUSE for c in self.strategy.choices) / len(self.strategy.choices),
            "s_old": [round(v, 6) for v in self.strategy.s_old.tolist()],
            "s_new": [round(v, 6) for v in self.strategy.s_new.tolist()],
            "borrowed": self._borrowed(),
            "family": self.family,
            "blend": float(content.blend[content.class_subspace[-1]]),
            "overlap_similarity_correlation": overlap_similarity_correlation(
                content.class_masks, content.prototypes
            ),
        }

    def _checkpoint_key(self) -> str:
        """Name what the checkpoint belongs to: parent, samples, labels, settings, seed, backbone."""
        digest = hashlib.sha256()
        parent = "" if self.previous is None else self.previous.digest
        for part in (
            self.backbone.id,
            parent,
            str(self.data.session),
            str(self.data.seed),
            self.settings.model_dump_json(),
            *self.data.train.ids,
            *map(str, self.data.train.labels.tolist()),
        ):
            digest.update(part.encode() + b"\0")
        return digest.hexdigest()


def _session_seed(seed: int, session: int) -> int:
    # 7,919 is prime and above any realistic number of sessions of one seed step.
    return seed * 7_919 + session
