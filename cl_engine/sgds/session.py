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
from cl_engine.backbones import FrozenVisionTransformer
from cl_engine.checkpoint import load_checkpoint, save_checkpoint
from cl_engine.errors import CapacityExhausted
from cl_engine.features import BaseFeatures, Extract
from cl_engine.generation import ClassEntry, Generation
from cl_engine.heads import PrototypeStatistics, RidgeStatistics, Standardiser, fit_ridge, leave_one_out
from cl_engine.heads.ridge import START_STRENGTH, fold_of
from cl_engine.learners.base import Progress, ProgressListener
from cl_engine.samples import SessionData
from cl_engine.sgds.adapter import Subspaces
from cl_engine.sgds.answer import AnswerNetwork
from cl_engine.sgds.certificate import certify
from cl_engine.sgds.content import METHOD, Content, LearnerState, read_learner_state
from cl_engine.sgds.relation import overlap_similarity_correlation
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.sgds.strategy import Choice, Strategy, keep_probabilities, semantic_strategy, session_to_borrow
from cl_engine.sgds.training import TrainedUnits, TrainingInput, UnitTrainer

# Weights of the own scores that are tried; 0 leaves the base scores alone.
BLENDS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
# Share of a session's time, for the progress bar: the frozen pass, the two phases, the heads.
FEATURES_SHARE, TRAINING_SHARE = 0.35, 0.55


class Session:
    """One session's working state: what `learn` knows once the frozen pass is done."""

    def __init__(
        self,
        backbone: FrozenVisionTransformer,
        settings: SGDSSettings,
        extract: Extract,
        data: SessionData,
        previous: Generation | None,
        content: Content | None,
        table: tuple[ClassEntry, ...],
        base: BaseFeatures,
    ) -> None:
        self.backbone, self.settings, self.extract = backbone, settings, extract
        self.data, self.previous, self.table, self.base = data, previous, table, base
        column_of = {entry.id: column for column, entry in enumerate(table)}
        self.columns = torch.tensor([column_of[int(c)] for c in data.train.labels], dtype=torch.int64)
        self.new_columns = torch.tensor([column_of[c] for c in data.new_classes], dtype=torch.int64)
        self.validation = torch.tensor(
            [_is_validation(i, self.settings.validation_fraction) for i in data.train.ids], dtype=torch.bool
        )
        if content is None:
            standardiser = Standardiser.neutral(base.features.shape[1], base.features.device)
            if self.settings.standardise == "first_session":
                standardiser = Standardiser.fit(base.features)
            content = self._empty_content(standardiser)
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

    # -- steps

    def train_units(self, checkpoint: Path | None, report: ProgressListener) -> TrainedUnits | None:
        """Run both phases; None where the session has no new class to train for."""
        if not len(self.new_columns):
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
        strength = self.state.strength
        unseen_weights = ridge.solve(strength).float()
        seen = self.validation
        ridge = ridge.updated(self.standard[seen], self.columns[seen], folds[seen], classes)
        strength = ridge.choose_strength(strength)
        state = LearnerState(ridge, self.prototypes, self._counters(units), strength)
        content = replace(
            self.content,
            prototypes=self.prototypes.prototypes(),
            base_weights=unseen_weights.cpu(),
            class_masks=self._class_masks(units),
        )
        if units is not None:
            content = self._with_subspace(content, units)
        # Contiguous, so that the products in memory and after a load take the same path, bit for bit.
        content = replace(content, base_weights=ridge.solve(strength).float().cpu().contiguous())
        content = self._calibrated(content)
        certificate = certify(None if self.previous is None else self.content, content)
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

    def _empty_content(self, standardiser: Standardiser) -> Content:
        settings, width = self.settings, self.backbone.width
        layers = settings.adapter_blocks
        adapted = 2 * width * min(settings.adapter_blocks, settings.feature_blocks)
        mean, scale = self._activation_statistics()
        dimensions = len(standardiser.mean)
        return Content(
            mean=standardiser.mean.cpu(),
            scale=standardiser.scale.cpu(),
            base_weights=torch.zeros(dimensions + 1, 0),
            prototypes=torch.zeros(0, dimensions),
            subspaces=Subspaces.none(layers, settings.units_per_session, width),
            class_masks=torch.zeros(0, layers, width, dtype=torch.bool),
            class_subspace=torch.zeros(0, dtype=torch.int64),
            subspace_mean=torch.zeros(0, adapted),
            subspace_scale=torch.zeros(0, adapted),
            subspace_head=torch.zeros(adapted + 1, 0),
            blend=torch.zeros(0),
            activation_mean=mean,
            activation_scale=scale,
            sharpness=torch.tensor([calibration.DEFAULT_SHARPNESS]),
            distances=torch.zeros(0),
        )

    @torch.no_grad()
    def _activation_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and spread of the frozen adapter inputs' token means, (L, d) each."""
        assert self.base.tokens is not None
        seen: list[list[Tensor]] = [[] for _ in range(self.settings.adapter_blocks)]
        first = self.backbone.depth - self.settings.adapter_blocks

        def record(index: int, inputs: Tensor) -> Tensor:
            seen[index - first].append(inputs.float().mean(dim=1))
            return torch.zeros_like(inputs)

        for tokens in torch.split(self.base.tokens, self.settings.batch_size):
            for _ in self.backbone.advance(tokens, first, self.backbone.depth, record):
                pass
        layers = [Standardiser.fit(torch.cat(layer)) for layer in seen]
        return torch.stack([s.mean for s in layers]).cpu(), torch.stack([s.scale for s in layers]).cpu()

    def _strategy(self) -> Strategy | None:
        if not len(self.new_columns):
            return None
        old = len(self.content.class_subspace)
        means = self.prototypes.prototypes()
        return semantic_strategy(
            means[self.new_columns],
            means[:old],
            temperature=self.settings.temperature,
            count_normalised=self.settings.count_normalised,
        )

    def _borrowed(self) -> int | None:
        if self.strategy is None or not self.settings.borrow:
            return None
        return session_to_borrow(self.strategy, self.content.class_subspace, len(self.content.subspaces))

    def _training_input(self) -> TrainingInput:
        assert self.strategy is not None
        assert self.base.tokens is not None
        settings, device = self.settings, self.backbone.device
        taken = len(self.content.subspaces) * settings.units_per_session
        if taken + settings.units_per_session > settings.max_units:
            raise CapacityExhausted(
                f"{taken} of max_units {settings.max_units} bottleneck units are taken and the session needs "
                f"{settings.units_per_session}: raise max_units or lower units_per_session"
            )
        chosen = (torch.isin(self.columns, self.new_columns) & ~self.validation).nonzero().squeeze(1)
        row_of = {int(column): row for row, column in enumerate(self.new_columns)}
        borrowed = self._borrowed()
        units = self.content.subspaces
        return TrainingInput(
            tokens=self.base.tokens[chosen.to(device)],
            rows=torch.tensor([row_of[int(c)] for c in self.columns[chosen]], dtype=torch.int64),
            probabilities=keep_probabilities(
                self.strategy,
                self.state.counters,
                reuse_sharpness=settings.reuse_sharpness,
                allocate_sharpness=settings.allocate_sharpness,
                floor=settings.probability_floor,
            ),
            borrowed_down=None if borrowed is None else units.down[borrowed].to(device),
            borrowed_up=None if borrowed is None else units.up[borrowed].to(device),
            activation_mean=self.content.activation_mean.to(device),
            activation_scale=self.content.activation_scale.to(device),
            seed=_session_seed(self.data.seed, self.data.session),
        )

    def _counters(self, units: TrainedUnits | None) -> Tensor:
        new = self.state.counters[:0] if units is None else units.counters
        return torch.cat([self.state.counters, new])

    def _class_masks(self, units: TrainedUnits | None) -> Tensor:
        new = self.content.class_masks[:0] if units is None else units.class_masks
        return torch.cat([self.content.class_masks, new])

    def _with_subspace(self, content: Content, units: TrainedUnits) -> Content:
        """Append the session's subspace, its own head, and the blend that validation favours."""
        number = len(content.subspaces)
        news = len(self.new_columns)
        subspaces = content.subspaces.extended(units.down, units.up, self._borrowed(), units.session_mask)
        adapted = content.subspace_head.shape[0] - 1
        content = replace(
            content,
            subspaces=subspaces,
            class_subspace=torch.cat([content.class_subspace, torch.full((news,), number)]),
            subspace_mean=torch.cat([content.subspace_mean, torch.zeros(1, adapted)]),
            subspace_scale=torch.cat([content.subspace_scale, torch.ones(1, adapted)]),
            subspace_head=torch.cat([content.subspace_head, torch.zeros(adapted + 1, news)], dim=1),
            blend=torch.cat([content.blend, torch.zeros(1)]),
        )
        own = torch.isin(self.columns, self.new_columns).nonzero().squeeze(1)
        raw = self._own_features(content, own, number)
        fitted = ~self.validation[own]
        blend = 0.0
        if news > 1 and bool((~fitted).any()) and bool(fitted.any()):
            trial = self._with_own_head(content, raw[fitted], self.columns[own[fitted]])
            blend = self._choose_blend(trial, own[~fitted], number)
        content = self._with_own_head(content, raw, self.columns[own])
        return replace(content, blend=torch.cat([content.blend[:-1], torch.tensor([blend])]))

    @torch.no_grad()
    def _own_features(self, content: Content, own: Tensor, number: int) -> Tensor:
        """Return adapted features of some samples in the new subspace, each under its inference mask."""
        assert self.base.tokens is not None
        network = AnswerNetwork(self.backbone, self.settings, content)
        parts = []
        for rows in torch.split(own, self.settings.batch_size):
            index = rows.to(self.backbone.device)
            subspace = torch.full((len(rows),), number, device=self.backbone.device)
            parts.append(
                network.subspace_features(
                    self.base.tokens[index], subspace, self.columns[rows].to(self.backbone.device)
                )
            )
        return torch.cat(parts)

    def _with_own_head(self, content: Content, raw: Tensor, columns: Tensor) -> Content:
        """Fit the new session's standardisation and head on adapted features (N, D2)."""
        standardiser = Standardiser.fit(raw)
        features = standardiser(raw)
        member = self.new_columns
        targets = (columns[:, None] == member).to(features.device).double()
        if self.settings.head == "cosine":
            prototypes = PrototypeStatistics.empty(features.shape[1]).updated(
                features, columns - int(member[0]), len(member)
            )
            weights = torch.cat([prototypes.prototypes().T, torch.zeros(1, len(member))])
        else:
            # Centred targets: the head tells the session's classes apart and says nothing about others.
            centred = targets - targets.mean(dim=0)
            weights = fit_ridge(features, centred, leave_one_out(features, centred)).float().cpu()
        head = content.subspace_head.clone()
        head[:, member] = weights
        return replace(
            content,
            subspace_head=head,
            subspace_mean=torch.cat([content.subspace_mean[:-1], standardiser.mean.cpu()[None]]),
            subspace_scale=torch.cat([content.subspace_scale[:-1], standardiser.scale.cpu()[None]]),
        )

    @torch.no_grad()
    def _choose_blend(self, trial: Content, rows: Tensor, number: int) -> float:
        """Return the smallest blend with the highest accuracy inside the session on unseen samples."""
        index = rows.to(self.backbone.device)
        base = self.base.rows(index)
        truth = self.columns[rows].to(self.backbone.device)
        correct = []
        for blend in BLENDS:
            content = replace(trial, blend=torch.cat([trial.blend[:-1], torch.tensor([blend])]))
            network = AnswerNetwork(self.backbone, self.settings, content)
            scores = torch.cat(
                [network.scores(base.rows(part))[0] for part in torch.split(torch.arange(len(rows)), 32)]
            )
            member = (network.class_subspace == number)[None, :]
            correct.append(int((scores.where(member, -torch.inf).argmax(dim=1) == truth).sum()))
        return BLENDS[correct.index(max(correct))]

    @torch.no_grad()
    def _calibrated(self, content: Content) -> Content:
        """Fit sharpness and the distance table on the holdout samples of the session's classes."""
        holdout = self.data.holdout
        new = [i for i, label in enumerate(holdout.labels.tolist()) if label in self.data.new_classes]
        if not new:
            return content
        network = AnswerNetwork(self.backbone, self.settings, content)
        base = self.extract(self.backbone, holdout, self.settings.feature_blocks, network.first, indices=new)
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
            "blend": float(content.blend[-1]),
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


def _is_validation(sample_id: str, fraction: float) -> bool:
    word = hashlib.sha256(b"validation\0" + sample_id.encode()).digest()[:8]
    return int.from_bytes(word, "big") / 2**64 < fraction


def _session_seed(seed: int, session: int) -> int:
    # 7,919 is prime and above any realistic number of sessions of one seed step.
    return seed * 7_919 + session
