"""Settings of SGDS; what the paper leaves open is a documented choice here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cl_engine.shared_adapters import FirstSessionSettings


class SGDSSettings(FirstSessionSettings):
    """How an SGDS session is run and how its generation answers."""

    feature_blocks: int = Field(default=4, ge=1)
    """CLS token and patch mean of this many of the last blocks are the features."""
    standardise: Literal["none", "first_session"] = "none"
    """Scale each base feature by the first session's statistics, or leave the layer-normed features as they
    are. On training images held out from CIFAR-10 (64 a class for training, 36 to judge, DINOv2 ViT-S/14 at
    168 px, 3 draws) leaving them gains 0.4 to 0.7 points with 1 to 3 blocks: statistics of two classes
    describe the classes to come badly. `tests.benchmarks.held_out_settings` (56 px, 2 blocks, three orders)
    has 4.1 there, and 1.2 the other way on 60 classes of sketches: those of fifteen describe them well."""
    units_per_session: int = Field(default=16, ge=1)
    """Bottleneck units a session gets for itself in each adapter; nobody else ever trains them. With
    `families` 32 are better where sessions have many classes (60 classes of QuickDraw, fifteen a session, 30
    sketches each, held-out sketches, three orders: A_T 0.481 against 0.469) and worse where they have two
    (CIFAR-10 at 56 px, three orders: 0.710 against 0.731); without, there is nothing between them
    (`tests.benchmarks.held_out_settings`)."""
    max_units: int = Field(default=4096, ge=1)
    """Bottleneck units all sessions may take in each adapter; after that sessions are refused."""
    density: float = Field(default=0.25, gt=0, le=1)
    """Share of an adapter's input activations that a mask keeps (rho; its rank is at most rho times d)."""
    scale: float = Field(default=1.0, gt=0)
    """Factor on the adapters' output."""

    explore_epochs: int = Field(default=2, ge=1)
    """Epochs of phase 1, semantic exploration: masks are drawn at random for every sample."""
    compact_epochs: int = Field(default=4, ge=0)
    """Epochs of phase 2, activation compaction: masks are the top-K of the counters."""
    batch_size: int = Field(default=32, ge=1)
    """Samples per step."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate of AdamW; cosine decay to zero over both phases."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's weight decay."""
    logit_scale: float = Field(default=20.0, gt=0)
    """Factor on the cosines of the training loss."""
    validation_fraction: float = Field(default=0.2, gt=0, lt=0.5)
    """Share of the session's training samples kept from the adapters, to choose the blend."""

    temperature: float = Field(default=0.1, gt=0)
    """Of the semantic relation P(y given c), a softmax over cosines. The paper shows none (1.0); with
    it P is nearly uniform and every class from the third session on is called 'reuse'."""
    count_normalised: bool = True
    """Compare mean relations instead of sums: sums grow with the number of old classes alone."""
    reuse_sharpness: float = Field(default=3.0, gt=0)
    """alpha_s: a reused unit's keep probability is 1 - exp(-alpha_s a / max a)."""
    allocate_sharpness: float = Field(default=5.0, gt=0)
    """alpha_h: an allocated unit's keep probability is exp(-alpha_h u / max u)."""
    decision: Literal["semantic", "reuse", "allocate"] = "semantic"
    """Step 0: by prototype similarity, or the same for every class of a session that has old ones."""
    probability_floor: float = Field(default=0.05, ge=0, le=1)
    """Least keep probability, so that no activation is out of reach."""
    borrow: bool = True
    """Feed the units of the most similar earlier session forward, frozen, where a class decides to reuse."""

    families: int = Field(default=0, ge=0)
    """At most so many subspaces may be joined by the classes of later, related sessions (see `family`); each
    keeps the sums of a ridge over its features in the learner state. 0 for none."""
    kinship: float = Field(default=0.75, gt=0)
    """Least relation to a family's classes, as a share of that to one another, with which a session joins. On
    CIFAR-10, Fashion-MNIST and 10 or 30 classes of QuickDraw (training images, 56 px, sessions of 5 and 10
    classes, six orders each) sessions of one data set have 0.91 or more, those of two at most 0.68."""
    family_weight: float = Field(default=2.0, ge=0)
    """Weight of a family's scores against the base scores, once another session has joined it."""

    exemplars_per_class: int = Field(default=0, ge=0)
    """Training samples of each class that are kept, as frozen tokens, and replayed while later sessions'
    units are trained, at most as many as the session has samples. None by default: what limits SGDS is the
    choice of the session, and that is made before the units are asked (see `own_head`)."""
    mask: Literal["counters", "random", "none"] = "counters"
    """What a mask keeps: the top-K of the activation counters; as many activations, drawn at random once
    a class; or all of them."""
    exclusive_units: bool = True
    """A session's units are its own. Off: all sessions train the same units, the reconstruction as first
    written, which forgets; then the certificate promises nothing."""
    mask_scope: Literal["session", "class"] = "session"
    """Whose mask a sample passes in phase 2 and at inference. `class` is the paper's wording, but a
    mask that depends on the label tells the network the label: it learns to tell masks apart, and a
    wrong route confirms itself. `session` is the top-K of the summed counters of the session's classes."""
    inference: Literal["prototype", "kwta", "none"] = "prototype"
    """Input mask at inference: the routed class's or session's (`prototype`), the top-K of the input's
    own z-scores (`kwta`), or no mask (`none`). Bottleneck units are always the routed session's."""
    routing: Literal["head", "prototype"] = "head"
    """What chooses the session: the base head's best class, or the nearest prototype."""
    head: Literal["ridge", "cosine"] = "ridge"
    """Classifier on base and on subspace features: analytic ridge, or cosine to class prototypes."""

    @model_validator(mode="after")
    def _units_fit(self) -> SGDSSettings:
        if self.units_per_session > self.max_units:
            raise ValueError(
                f"units_per_session ({self.units_per_session}) is above max_units ({self.max_units}): "
                "not even one session fits"
            )
        if not self.exclusive_units and self.borrow:
            raise ValueError("borrow needs exclusive_units: units that all sessions share are no session's")
        if self.families and not (
            self.exclusive_units and self.head == "ridge" and self.mask_scope == "session"
        ):
            raise ValueError(
                f"families ({self.families}) need exclusive_units, head ridge and mask_scope session: their "
                "heads are exact only over features that no session changes"
            )
        return self
