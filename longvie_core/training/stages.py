"""LongVie's training stages, one settings object each: the papers' for Wan2.1-I2V-14B, and the tiny model's.

P1 = LongVie, P2 = LongVie 2; what neither gives is marked as ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from ..model.dual_control import DualControlConfig
from ..model.schedule import SHIFT
from ..model.wan import WanConfig
from .degradation import (
    HISTORY_LENGTHS,
    DepthDegradation,
    FeatureDegradation,
    FrameDegradation,
)
from .loop.trainer import TrainSettings
from .losses import LossWeights

WEIGHTS = ("float32", "float16", "bfloat16")

CONTROL_ONLY, WITH_SELF_ATTENTION, EVERYTHING = LEARNT = ("control", "control and self-attention", "everything")

TINY_BACKBONE = WanConfig(dim=256, ffn_dim=768, num_heads=2, num_layers=4, has_image_input=False)
TINY_CONTROL = DualControlConfig(dim=256, control_dim=128, ffn_dim=384, num_heads=1, num_layers=3, image=False)


@dataclass(frozen=True)
class StreamShares:
    """How often a clip is shown with which of its controls; the shares need not sum to 1."""

    both: float = 1.0
    dense: float = 0.0
    sparse: float = 0.0
    none: float = 0.0


@dataclass(frozen=True)
class Optimiser:
    """AdamW, and Muon for the matrices of the blocks where ``matrix_rate`` is not 0.

    Args:
        rate: AdamW's learning rate.
        betas, weight_decay: AdamW's.
        matrix_rate: Muon's learning rate.
    """

    rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    matrix_rate: float = 0.0


@dataclass(frozen=True)
class Timesteps:
    """Which noise levels are trained.

    Args:
        shifts: of the schedule; each clip draws one of them.
        bell: weigh the loss by the bell around t = 500 (the reference); it is 0 at t = 1000, which only a backbone that can
            denoise already does not need.
    """

    shifts: tuple[float, ...] = (SHIFT,)
    bell: bool = True


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        learns: which weights, one of :data:`LEARNT`.
        training: steps, seeds, precision, averages.
        clips: a process and a forward pass; the batch is this x processes x ``training.accumulation``.
        optimiser, timesteps, loss: see there.
        streams: how often a control is left out.
        dense_features: feature-level degradation.
        depth: data-level degradation of depth; ``None`` = never.
        first_frame: degradation of the start frame and the history; ``None`` = never.
        histories: lengths of the history in frames, all alike likely; a batch has one length.
        variants: degraded variants that are kept of each clip.
        weights: dtype of the exported weights, a name of torch's.
        checkpointing: recompute activations in the backward pass.
        sheet_clips: held-out clips that figures are means of.
        sheet_history: frames of history that they are sampled with.

    Raises:
        ValueError: a value out of range.
    """

    learns: str
    training: TrainSettings
    clips: int = 1
    optimiser: Optimiser = Optimiser()
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
        if self.learns not in LEARNT:
            raise ValueError(f"learns {self.learns!r} is unknown: use one of {', '.join(LEARNT)}")
        if self.clips < 1 or self.variants < 1 or self.sheet_clips < 1:
            raise ValueError("clips, variants and sheet_clips must be at least 1")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights {self.weights!r} are none of {', '.join(WEIGHTS)}")
        if not set(self.histories) <= set(range(18)) or 0 not in self.histories:
            raise ValueError(f"histories {self.histories} must be within 0 .. 17 and have 0, for clips that begin a video")
        if self.sheet_history not in self.histories:
            raise ValueError(f"sheet_history {self.sheet_history} is not among the histories {self.histories} that are trained")


def _large(rate: float, **changes: Any) -> Stage:
    """What the stages of the 14B model share: 3,000 steps of 64 clips (P1); 8 processes x 8 accumulated."""
    training = TrainSettings(
        steps=3000, accumulation=8, precision="bf16", checkpoint_every=100, sheet_every=250, log_every=10, shared_state=True
    )
    return Stage(training=training, optimiser=Optimiser(rate), **changes)


CONTROL = _large(1e-4, learns=CONTROL_ONLY, depth=DepthDegradation())
"""P1 and stage 1 of P2: the control network, from half-width weights; feature- and data-level degradation of depth."""

DEGRADATION = _large(1e-5, learns=CONTROL_ONLY, depth=DepthDegradation(start=0.0), first_frame=FrameDegradation(), variants=2)
"""P2 stage 2: start frames as they look after many clips."""

HISTORY = _large(
    5e-6,
    learns=WITH_SELF_ATTENTION,
    depth=DepthDegradation(start=0.0),
    first_frame=FrameDegradation(),
    histories=HISTORY_LENGTHS,
    variants=2,
    sheet_history=8,
)
"""P2 stage 3: history, and the base's self-attention, which has to read it."""

NO_FEATURE_DEGRADATION = FeatureDegradation(probability=0.0)

TINY_JOINT = Stage(
    learns=EVERYTHING,
    training=TrainSettings(
        steps=7_300,
        warmup=200,
        decay="cosine",
        average=0.999,
        precision="bf16",
        checkpoint_every=1_000,
        sheet_every=2_000,
        log_every=50,
        workers=8,
        graphs=True,
    ),
    clips=128,
    weights="float16",
    optimiser=Optimiser(rate=1e-3, betas=(0.9, 0.98), matrix_rate=0.01),
    timesteps=Timesteps(shifts=(5.0, 1.5), bell=False),
    streams=StreamShares(both=0.5, dense=0.2, sparse=0.2, none=0.1),
    dense_features=NO_FEATURE_DEGRADATION,
    histories=(0, 5, 8, 9),
    checkpointing=False,
    sheet_clips=12,
    sheet_history=8,
)
"""Ours: backbone and control network of the tiny model from nothing, together, of pictures as they are: what the papers begin
with, a pretrained backbone and a plain control network."""

TINY_ROBUST = replace(
    TINY_JOINT,
    learns=WITH_SELF_ATTENTION,
    training=replace(TINY_JOINT.training, steps=6_000, checkpoint_every=300),
    clips=32,
    optimiser=replace(TINY_JOINT.optimiser, rate=2.5e-4, matrix_rate=0.002),
    dense_features=FeatureDegradation(),
    first_frame=FrameDegradation(probability=0.6, round_trip_share=1.0),
    loss=LossWeights(first_frames=(), low_pass=0.0, high_pass=0.0, history=0.0),
)
"""Ours, after P2's third stage: control network and self-attention learn starts and histories that have been through the VAE.

Batches are as small as a CPU's core likes them. P2's loss terms are left out: its weights of the first latent frames are made
for clips of 21, and would all but silence the 5 that these clips have."""

TINY_PLAIN = replace(TINY_ROBUST, dense_features=NO_FEATURE_DEGRADATION, first_frame=None)
"""The ablation of :data:`TINY_ROBUST`: as long, of pictures as they are."""

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


def changed(settings: Any, changes: Mapping[str, Any]) -> Any:
    """A settings object with other values, such as ``{"first_frame.probability": 0.3}``; lists count as tuples.

    Raises:
        ValueError: no such setting, or a value of another kind or out of range.
    """
    names = [field.name for field in dataclasses.fields(settings)] if dataclasses.is_dataclass(settings) else []
    own: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if name not in names:
            raise ValueError(f"there is no setting {name!r} here, but: {', '.join(names) or 'none'}")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            own[name] = _like(name, getattr(settings, name), value)
    return replace(settings, **own, **{name: changed(getattr(settings, name), within) for name, within in inner.items()})


def _like(name: str, old: Any, value: Any) -> Any:
    """A JSON value as the setting has it."""
    if isinstance(value, list):
        value = tuple(_like(name, None, item) for item in value)
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if value is not None and old is not None and type(value) is not type(old):
        raise ValueError(f"{name} is a {type(old).__name__}, but {value!r} is a {type(value).__name__}")
    return value
