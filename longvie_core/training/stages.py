"""LongVie's training stages, one settings object each: the papers' for Wan2.1-I2V-14B, and the tiny model's.

P1 = LongVie (arXiv 2508.03694), P2 = LongVie 2 (arXiv 2512.13604); what neither gives is marked as ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..model.schedule import SHIFT
from .degradation.dense import DepthDegradation, FeatureDegradation
from .degradation.frames import FrameDegradation
from .degradation.history import HISTORY_LENGTHS
from .loop.settings import TrainSettings
from .losses import LossWeights

WEIGHTS = ("float32", "float16", "bfloat16")

CONTROL_ONLY, WITH_SELF_ATTENTION, EVERYTHING = TRAINABLE = ("control", "control and self-attention", "everything")


@dataclass(frozen=True)
class StreamShares:
    """How often a clip is trained with which of its controls; the shares need not sum to 1."""

    both: float = 1.0
    dense: float = 0.0
    sparse: float = 0.0
    none: float = 0.0


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, and Muon for the matrices of the blocks where ``muon_lr`` is not 0.

    Args:
        lr: AdamW's learning rate.
        betas, weight_decay: AdamW's.
        muon_lr: Muon's learning rate; 0 = AdamW for all weights.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    muon_lr: float = 0.0


@dataclass(frozen=True)
class Timesteps:
    """Which noise levels are trained.

    Args:
        shifts: of the schedule; each clip draws one of them.
        bell: weigh the loss by a bell around t = 500 (the reference). The weight is 0 at t = 1000, pure noise: a pretrained
            backbone knows that step already; switch the bell off when training from nothing.
    """

    shifts: tuple[float, ...] = (SHIFT,)
    bell: bool = True


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        trainable: which weights are trained, one of :data:`TRAINABLE`.
        training: steps, seed, precision, averaging of the weights.
        batch_size: clips a process and a forward pass; a step sees this x processes x ``training.grad_accum_steps``.
        optimizer, timesteps, loss: see there.
        streams: how often a control is left out.
        dense_features: feature-level degradation.
        depth: data-level degradation of depth; ``None`` = never.
        first_frame: degradation of the start frame and the history; ``None`` = never.
        histories: lengths of the history in frames, each as likely as the others; a batch has one length.
        variants: degraded variants that are kept of each clip.
        weights: dtype of the exported weights, a name of torch's.
        checkpointing: recompute activations in the backward pass.
        sheet_clips: held-out clips that figures are means of.
        sheet_history: frames of history that they are sampled with.

    Raises:
        ValueError: a value out of range.
    """

    trainable: str
    training: TrainSettings
    batch_size: int = 1
    optimizer: OptimizerSettings = OptimizerSettings()
    timesteps: Timesteps = Timesteps()
    loss: LossWeights = LossWeights()
    streams: StreamShares = StreamShares()
    dense_features: FeatureDegradation = FeatureDegradation()
    depth: DepthDegradation | None = None
    first_frame: FrameDegradation | None = None
    histories: tuple[int, ...] = (0,)
    variants: int = 1
    weights: str = "bfloat16"
    checkpointing: bool = True
    sheet_clips: int = 4
    sheet_history: int = 0

    def __post_init__(self) -> None:
        if self.trainable not in TRAINABLE:
            raise ValueError(f"trainable {self.trainable!r} is unknown: use one of {', '.join(TRAINABLE)}")
        for name in ("batch_size", "variants", "sheet_clips"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r} are none of {', '.join(WEIGHTS)}")
        if not set(self.histories) <= set(range(18)) or 0 not in self.histories:
            raise ValueError(f"histories {self.histories} must be within 0 .. 17 and have 0, for clips that begin a video")
        if self.sheet_history not in self.histories:
            raise ValueError(f"sheet_history {self.sheet_history} is not among the histories {self.histories} that are trained")


def _large(lr: float, **changes: Any) -> Stage:
    """What the stages of the 14B model share: 3,000 steps of 64 clips (P1); 8 processes x 8 accumulated."""
    training = TrainSettings(
        steps=3000, grad_accum_steps=8, precision="bf16", checkpoint_every=100, sheet_every=250, log_every=10, zero1=True
    )
    return Stage(training=training, optimizer=OptimizerSettings(lr), **changes)


CONTROL = _large(1e-4, trainable=CONTROL_ONLY, depth=DepthDegradation())
"""P1 and stage 1 of P2: the control network, from half-width weights; feature- and data-level degradation of depth."""

DEGRADATION = _large(
    1e-5, trainable=CONTROL_ONLY, depth=DepthDegradation(start=0.0), first_frame=FrameDegradation(), variants=2
)
"""P2 stage 2: start frames as they look after many clips."""

HISTORY = _large(
    5e-6,
    trainable=WITH_SELF_ATTENTION,
    depth=DepthDegradation(start=0.0),
    first_frame=FrameDegradation(),
    histories=HISTORY_LENGTHS,
    variants=2,
    sheet_history=8,
)
"""P2 stage 3: history, and the base's self-attention, which has to read it."""

NO_FEATURE_DEGRADATION = FeatureDegradation(probability=0.0)

TINY_JOINT = Stage(
    trainable=EVERYTHING,
    training=TrainSettings(
        steps=7_300,
        warmup=200,
        decay="cosine",
        ema=0.999,
        precision="bf16",
        checkpoint_every=1_000,
        sheet_every=2_000,
        log_every=50,
        workers=8,
        graphs=True,
    ),
    batch_size=128,
    weights="float16",
    optimizer=OptimizerSettings(lr=1e-3, betas=(0.9, 0.98), muon_lr=0.01),
    timesteps=Timesteps(shifts=(5.0, 1.5), bell=False),
    streams=StreamShares(both=0.5, dense=0.2, sparse=0.2, none=0.1),
    dense_features=NO_FEATURE_DEGRADATION,
    histories=(0, 5, 8, 9),
    checkpointing=False,
    sheet_clips=12,
    sheet_history=8,
)
"""Ours: backbone and control network of the tiny model from nothing, together, nothing degraded. It gives what the papers begin
with, a pretrained backbone, and a control network with it."""

TINY_ROBUST = replace(
    TINY_JOINT,
    trainable=WITH_SELF_ATTENTION,
    training=replace(TINY_JOINT.training, steps=6_000, checkpoint_every=300),
    batch_size=32,
    optimizer=replace(TINY_JOINT.optimizer, lr=2.5e-4, muon_lr=0.002),
    dense_features=FeatureDegradation(),
    first_frame=FrameDegradation(probability=0.6, round_trip_share=1.0),
    loss=LossWeights(first_frames=(), low_pass=0.0, high_pass=0.0, history=0.0),
)
"""Ours, after P2's third stage: control network and self-attention learn starts and histories that have been through the VAE.

Batches are as small as a CPU's core likes them. P2's loss terms are left out: its weights of the first latent frames are made
for clips of 21, and would all but silence the 5 that these clips have."""

TINY_PLAIN = replace(TINY_ROBUST, dense_features=NO_FEATURE_DEGRADATION, first_frame=None)
"""The ablation of :data:`TINY_ROBUST`: as long, nothing degraded."""

STAGES = MappingProxyType(
    {
        "tiny-joint": TINY_JOINT,
        "tiny-robust": TINY_ROBUST,
        "tiny-plain": TINY_PLAIN,
        "control": CONTROL,
        "degradation": DEGRADATION,
        "history": HISTORY,
    }
)
