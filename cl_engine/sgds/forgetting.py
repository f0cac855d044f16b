"""Forgetting a class of an SGDS generation: its columns, masks, prototype, counters and statistics go.

The bottleneck units of its session were trained on all of the session's classes together and stay as they
are while another class answers with them or another session borrows them: changing them would change the
others' answers. Once nobody does, they are set to zero. A family's sums lose the class exactly, and its head
is solved again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cl_engine.backbones import BlockwiseBackbone
from cl_engine.features import Extract
from cl_engine.generation import Generation
from cl_engine.heads import Standardiser
from cl_engine.learners.forgetting import check_known, taken_out, without_class
from cl_engine.samples import SampleSet
from cl_engine.sgds.answer import AnswerNetwork, first_adapted_block
from cl_engine.sgds.certificate import certify_forgetting
from cl_engine.sgds.content import Content, LearnerState, read_content, read_learner_state
from cl_engine.sgds.family import subspace_features, with_family_heads
from cl_engine.sgds.settings import SGDSSettings
from cl_engine.shared_adapters import adapted_base


@torch.no_grad()
def forget_class(
    backbone: BlockwiseBackbone,
    extract: Extract,
    feature_blocks: int,
    generation: Generation,
    class_id: int,
    samples: SampleSet,
) -> Generation:
    """Take a class out; see `learners.forgetting` for what is exact.

    Raises:
        UnsupportedGeneration: not an SGDS generation, or without its learner state.
        ValueError: the class is unknown or the last one, or the samples are not all that it was learnt
            from.
        CertificateViolation: something of another class would change.
    """
    column = check_known(generation, class_id, samples)
    before = read_content(generation)
    state = read_learner_state(generation.learner_state, backbone.device)
    standardiser = Standardiser(before.mean.to(backbone.device), before.scale.to(backbone.device))
    settings = SGDSSettings(**generation.settings)
    # Tokens for what is read through adapters: the first session's, or a family's.
    through = before.shared is not None or state.families
    first = first_adapted_block(backbone, settings) if through else None
    base = extract(backbone, samples, feature_blocks, first)
    features = standardiser(adapted_base(backbone, base, feature_blocks, before.shared).features)
    ridge, residual = taken_out(state.ridge, features, samples.ids, column, class_id)
    strength = ridge.choose_strength()
    kept = torch.arange(len(before.class_subspace)) != column
    prototypes = state.prototypes.without(column)
    exemplars = None if state.exemplars is None else state.exemplars.without(column)
    after = _without(before, kept)
    families = {f: sums.without(column) for f, sums in state.families.items()}
    family = int(before.class_subspace[column])
    if family in families:
        assert base.tokens is not None
        network = AnswerNetwork(backbone, settings, before)
        columns = torch.full((len(samples.labels),), column)
        read = subspace_features(network, base.tokens, columns, family, settings.batch_size)
        families[family], _ = taken_out(state.families[family], read, samples.ids, column, class_id)
    families = {f: sums for f, sums in families.items() if bool((after.class_subspace == f).any())}
    state = LearnerState(ridge, prototypes, state.counters[kept], strength, exemplars, families)
    after = replace(
        after,
        prototypes=prototypes.prototypes(),
        base_weights=ridge.solve(strength).float().cpu().contiguous(),
    )
    after = with_family_heads(after, families)
    certificate = certify_forgetting(before, after, column)
    return without_class(
        generation,
        class_id,
        tensors=after.tensors(),
        masks=after.masks(),
        learner_state=state.tensors(),
        certificate=certificate | {"forgotten": class_id, "residual": residual},
    )


def _without(content: Content, kept: Tensor) -> Content:
    """Drop a class's masks and columns, and the subspaces that nobody needs any more."""
    class_subspace = content.class_subspace[kept]
    subspaces = content.subspaces
    used = torch.zeros(len(subspaces), dtype=torch.bool)
    waiting = set(class_subspace.tolist()) - {-1}
    while waiting:
        subspace = waiting.pop()
        used[subspace] = True
        lender = int(subspaces.borrowed[subspace])
        if lender >= 0 and not used[lender]:
            waiting.add(lender)
    borrowed = subspaces.borrowed.where(used, torch.full_like(subspaces.borrowed, -1))
    rows = used.view(-1, 1, 1, 1)
    return replace(
        content,
        subspaces=replace(
            subspaces,
            down=subspaces.down * rows,
            up=subspaces.up * rows,
            borrowed=borrowed,
            input_masks=subspaces.input_masks & used.view(-1, 1, 1),
        ),
        class_masks=content.class_masks[kept],
        class_subspace=class_subspace,
        subspace_mean=content.subspace_mean * used[:, None],
        subspace_scale=torch.where(used[:, None], content.subspace_scale, 1.0),
        subspace_head=content.subspace_head[:, kept].contiguous(),
        blend=content.blend * used,
        joined=None if content.joined is None else content.joined & used,
    )
