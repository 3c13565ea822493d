"""Losses of the three training stages (P2 sections 3.3, 3.4; the reference): weighted flow matching and the first-frame terms.

All of them compare velocities (noise - data). Per-sample values [B] are formed first, so that one batch may mix degraded and
clean samples, with and without history; the reference knows batches of one. Clips may have any number of latent frames; the
reference's frame weights are written for 21.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.schedule import SHIFT, flow_sigmas, timesteps, training_weights

# Timesteps


@dataclass(frozen=True)
class TimestepDraw:
    """Timesteps of a batch with what belongs to them, [B] each.

    Args:
        timestep: the network's input, 0 .. 1000.
        sigma: share of noise in the noisy latents, 0 .. 1.
        weight: of the sample's loss.
    """

    timestep: Tensor
    sigma: Tensor
    weight: Tensor


@dataclass(frozen=True)
class TrainingSchedule:
    """The timesteps that training draws from, with their sigmas and loss weights, float32 [N] each."""

    timesteps: Tensor
    sigmas: Tensor
    weights: Tensor

    def at(self, ids: Tensor) -> TimestepDraw:
        """The draw of step numbers ``ids`` [B], 0 (pure noise, weight 0) .. N - 1."""
        return TimestepDraw(self.timesteps[ids], self.sigmas[ids], self.weights[ids])


def training_schedule(steps: int = 1000, shift: float = SHIFT) -> TrainingSchedule:
    """The reference's training schedule: ``steps`` shifted sigmas without the closing 0, weighted by a bell around t = 500."""
    sigmas = flow_sigmas(steps, shift)
    times = timesteps(sigmas)
    return TrainingSchedule(times, sigmas[:-1], training_weights(times))


def draw_timesteps(schedule: TrainingSchedule, batch: int, generator: torch.Generator) -> TimestepDraw:
    """One timestep a sample, each step of the schedule as likely as the others, from a CPU generator."""
    return schedule.at(torch.randint(len(schedule.timesteps), (batch,), generator=generator))


# Terms


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss on degraded samples (P2 section 3.4); a term whose weight is 0 is not computed.

    Args:
        first_frames: of the first latent frames in the flow-matching term; the others weigh 1.
        low_pass: of the agreement with the degraded first frame in low frequencies.
        high_pass: of the agreement with the clean first frame in high frequencies.
        history: of the agreement with the last history frame.
    """

    first_frames: tuple[float, ...] = (0.05, 0.325, 0.757)
    low_pass: float = 0.2
    high_pass: float = 0.15
    history: float = 0.5


def velocity_target(noise: Tensor, data: Tensor) -> Tensor:
    """What the network is to predict: ``noise - data``."""
    return noise - data


def mean_square(difference: Tensor) -> Tensor:
    """Mean of the squares of each sample: [B, ...] -> [B]."""
    return difference.square().flatten(1).mean(dim=1)


def frame_weights(frames: int, first: tuple[float, ...], like: Tensor) -> Tensor:
    """Weights [frames] of a clip's latent frames: ``first``, then 1; a clip shorter than ``first`` uses its beginning."""
    leading = [like.new_full((1,), weight) for weight in first[:frames]]  # a copy from the host could not be in a CUDA graph
    return torch.cat([*leading, like.new_ones(frames - len(leading))])


def flow_matching(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """``mean(w_f * (v - target)^2)`` of each sample; the weights are not normalised (P2 section 3.4, the reference).

    Args:
        prediction, target: velocities [B, 16, f, h, w].
        weights: of the latent frames, [B, f] or [f].

    Returns:
        [B].
    """
    per_frame = (prediction - target).square().mean(dim=(1, 3, 4))
    return (per_frame * weights).mean(dim=1)


def low_pass(x: Tensor) -> Tensor:
    """LP of P2: [B, C, f, h, w] trilinearly to half its height and width (rounded down, at least 1) and back."""
    frames, height, width = x.shape[2:]
    half = F.interpolate(x, size=(frames, max(1, height // 2), max(1, width // 2)), mode="trilinear", align_corners=False)
    return F.interpolate(half, size=(frames, height, width), mode="trilinear", align_corners=False)


def high_pass(x: Tensor) -> Tensor:
    """HP of P2: ``x - LP(x)``."""
    return x - low_pass(x)


def degraded_agreement(first: Tensor, noise: Tensor, degraded: Tensor) -> Tensor:
    """``|LP(v_0) - LP(noise_0 - degraded)|^2`` of each sample: keep the structure of the degraded frame that it starts from.

    Args:
        first: the prediction's first latent frame [B, 16, 1, h, w].
        noise: the noise's first latent frame.
        degraded: VAE of the degraded conditioning image *alone* [B, 16, 1, h, w].
    """
    return mean_square(low_pass(first) - low_pass(velocity_target(noise, degraded)))


def clean_detail(first: Tensor, noise: Tensor, clean: Tensor) -> Tensor:
    """``|HP(v_0) - HP(noise_0 - clean_0)|^2`` of each sample: bring back the detail that was lost."""
    return mean_square(high_pass(first) - high_pass(velocity_target(noise, clean)))


def history_agreement(first: Tensor, noise: Tensor, last: Tensor) -> Tensor:
    """``|v_0 - (noise_0 - last)|^2`` of each sample, ``last`` = VAE of the last history frame alone [B, 16, 1, h, w]."""
    return mean_square(first - velocity_target(noise, last))


# The whole loss


@dataclass(frozen=True)
class DegradedSamples:
    """Which samples of a batch are degraded, and the latents that their terms compare with.

    Args:
        flags: bool [B], which samples are degraded; the others get the plain loss.
        image: VAE of the conditioning image alone [B, 16, 1, h, w]; any finite values where a sample is clean.
        has_history: bool [B], which samples have a history.
        history: VAE of the last history frame alone [B, 16, 1, h, w], any finite values where a sample has none; ``None``
            where no sample of the batch has one.
    """

    flags: Tensor
    image: Tensor
    has_history: Tensor
    history: Tensor | None = None


def loss_terms(
    prediction: Tensor,
    noise: Tensor,
    data: Tensor,
    degraded: DegradedSamples | None = None,
    weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """The weighted terms of each sample, before the weight of its timestep.

    Args:
        prediction: the network's velocity [B, 16, f, h, w].
        noise, data: what the noisy latents were mixed of, same shape.
        degraded: ``None``: a clean batch, the flow-matching term alone (P2 stage 1).
        weights: of the terms, P2's by default.

    Returns:
        ``flow`` and, for a batch with degraded samples, ``low_pass``, ``high_pass`` and ``history`` (where there is one), as
        far as their weights are not 0: [B] each, 0 where a term does not concern a sample. Their sum is the sample's loss.
    """
    weights = weights or LossWeights()
    prediction, noise, data = prediction.float(), noise.float(), data.float()
    plain = prediction.new_ones(prediction.shape[2])
    if degraded is None:
        return {"flow": flow_matching(prediction, velocity_target(noise, data), plain)}
    weighted = frame_weights(prediction.shape[2], weights.first_frames, prediction)
    per_sample = torch.where(degraded.flags[:, None], weighted, plain)
    first, noise_first, data_first = (x[:, :, :1] for x in (prediction, noise, data))
    terms = {"flow": flow_matching(prediction, velocity_target(noise, data), per_sample)}
    if weights.low_pass:
        agreement = degraded_agreement(first, noise_first, degraded.image.float())
        terms["low_pass"] = weights.low_pass * degraded.flags * agreement
    if weights.high_pass:
        terms["high_pass"] = weights.high_pass * degraded.flags * clean_detail(first, noise_first, data_first)
    if weights.history and degraded.history is not None:
        concerned = degraded.flags & degraded.has_history
        terms["history"] = weights.history * concerned * history_agreement(first, noise_first, degraded.history.float())
    return terms


def batch_terms(terms: Mapping[str, Tensor], timestep_weight: Tensor) -> dict[str, Tensor]:
    """The scalar terms of a batch, ``mean over samples of w(t) * term``; their sum is the loss. ``timestep_weight`` [B]."""
    return {name: (timestep_weight * term).mean() for name, term in terms.items()}
