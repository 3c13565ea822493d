"""The control task: the velocity of clips from their controls, start frame and history, any of which may be degraded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import send_to_device
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...disk.atomic import write_atomically
from ...model.clip import encode_control
from ...model.conditioning import control_condition
from ...model.schedule import add_noise
from ..data.codec import TrainingCodec
from ..data.latents import ClipLatents
from ..data.source import Clip
from ..degradation.dense import depth_degradation_begins, draw_dense_strength
from ..degradation.frames import is_degraded
from ..degradation.history import draw_history_length
from ..draws import chance, choose, generator_for
from ..loop.ema import trainable_parameters
from ..loop.muon import Muon
from ..losses import DegradedSamples, batch_terms, draw_timesteps, loss_terms, training_schedule
from ..networks.controlled_backbone import Conditions, ControlledBackbone, published_files, require_gradients, sample_clips
from ..stages import Stage
from .batches import Batch, SampleView, read_views
from .pictures import grid, psnr, stacked_pixels


class ControlTask:
    """:class:`~longvie_core.training.loop.trainer.Task`: one stage of LongVie's training.

    Args:
        stage: its settings.
        network: what it starts from.
        latents: of the training clips, as the stage's settings specify them.
        held_out: of other clips, for the sheets; the first ``stage.sheet_clips`` of them.
        codec: for the sheets.
        text: embedding [1, L, text_dim] of a caption.

    Raises:
        ValueError: not all clips are encoded.
    """

    def __init__(
        self,
        stage: Stage,
        network: ControlledBackbone,
        latents: ClipLatents,
        held_out: ClipLatents,
        codec: TrainingCodec,
        text: Callable[[str], Tensor],
    ) -> None:
        missing = latents.missing(range(len(latents.source)))
        if missing:
            raise ValueError(f"{missing} of {len(latents.source)} training clips are not encoded: run 'prepare' first")
        self.stage, self.network, self.latents, self.held_out = stage, network, latents, held_out
        self.codec, self.text = codec, text
        self.past = np.array([latents.source.past(row) for row in range(len(latents.source))])
        self.schedules = [training_schedule(shift=shift) for shift in stage.timesteps.shifts]
        require_gradients(network, stage.trainable)
        if stage.checkpointing:
            network.backbone.enable_gradient_checkpointing()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        settings = self.stage.optimizer
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, value in trainable_parameters(self.network):
            of_muon = settings.muon_lr and "blocks" in name and _is_matrix(name, value)
            (matrices if of_muon else others).append(value)
        adamw = torch.optim.AdamW(others, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay)
        return [adamw, Muon(matrices, settings.muon_lr)] if matrices else [adamw]

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        rows, history = self.choose_clips(step, generator)
        views = [self.draw_view(row, step, generator) for row in rows]
        draws = [self._timestep(generator) for _ in rows]
        timestep, sigma, weight = (torch.cat(values) for values in zip(*draws, strict=True))
        data = self.latents.clean.read_half("video", rows)
        flags = torch.tensor([view.degraded for view in views]) if self.stage.first_frame is not None else None
        noise = torch.randn(data.shape, generator=generator)
        return Batch(read_views(self.latents, views, history, self.text), data, noise, timestep, sigma, weight, flags)

    def losses(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        conditions, data = batch.latents.conditions(), batch.data.float()
        noisy = add_noise(data, batch.noise, batch.sigma[:, None, None, None, None])
        with _plain_attention(self.network):
            prediction = network(noisy, batch.timestep, conditions)
        terms = loss_terms(prediction, batch.noise, data, _degraded_samples(conditions, batch.degraded), self.stage.loss)
        return batch_terms(terms, batch.weight)

    def sheet(self, network: ControlledBackbone) -> tuple[np.ndarray, Mapping[str, float]]:
        """Held-out clips, their controls, and what is sampled from these; PSNR in dB of all frames but the first."""
        rows = sheet_rows(self.held_out, self.stage)
        device = next(network.parameters()).device
        clips = [self.held_out.source[row] for row in rows]
        truth = stacked_pixels([clip.frames for clip in clips])
        views = [SampleView(row) for row in rows]
        latents = read_views(self.held_out, views, self.stage.sheet_history, self.text)
        both = send_to_device(latents, device).conditions()
        on, off = torch.ones(len(rows), device=device), torch.zeros(len(rows), device=device)
        cases = {
            "both": both,
            "dense": replace(both, dense_strength=on, sparse_strength=off),
            "sparse": replace(both, dense_strength=off, sparse_strength=on),
            "none": replace(both, dense_strength=off, sparse_strength=off),
            "dense inverted": replace(both, dense=self._inverted(clips).to(device)),
        }
        results = {name: self._sample(network, conditions).cpu() for name, conditions in cases.items()}
        results["vae"] = self.codec.decode_pixels(self.held_out.clean.read("video", rows)).cpu()
        figures = {
            f"psnr {name}": float(np.mean([psnr(one[:, 1:], true[:, 1:]) for one, true in zip(pixels, truth, strict=True)]))
            for name, pixels in results.items()
        }
        columns = (truth, stacked_pixels([clip.dense for clip in clips]), stacked_pixels([clip.sparse for clip in clips]))
        return grid([*columns, results["both"], results["none"]]), figures

    def export(self, network: ControlledBackbone, folder: Path) -> None:
        """``control.safetensors`` in the published key layout, and what else was trained: ``dit.safetensors`` (self-attention,
        an overlay on the base) or the whole ``backbone.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = getattr(torch, self.stage.weights)
        for name, (weights, metadata) in published_files(network, self.stage.trainable).items():
            tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
            write_atomically(folder / name, partial(save_file, tensors, metadata=metadata))

    def choose_clips(self, step: int, generator: torch.Generator) -> tuple[list[int], int]:
        """The clips of a step, and the length of their history in frames.

        The length is drawn from the step alone, so that other processes have the same one and none waits for a longer batch.
        """
        of_step = generator_for(self.stage.training.seed, step)
        length = draw_history_length(self.stage.histories, int(self.past.max()) + 1, of_step)
        rows = np.flatnonzero(self.past + 1 >= length)
        places = torch.randint(len(rows), (self.stage.batch_size,), generator=generator)
        return rows[places.numpy()].tolist(), length

    def draw_view(self, row: int, step: int, generator: torch.Generator) -> SampleView:
        """How a step sees the clip ``row``."""
        stage, shares = self.stage, self.stage.streams
        variant = int(torch.randint(stage.variants, (), generator=generator))
        weights = (shares.both, shares.dense, shares.sparse, shares.none)
        dense, sparse = choose(((1, 1), (1, 0), (0, 1), (0, 0)), weights, generator)
        strength = draw_dense_strength(stage.dense_features, generator)
        weak_start = stage.first_frame is not None and chance(stage.first_frame.probability, generator)
        weak_depth = stage.depth is not None and chance(stage.depth.probability, generator)
        phased_in = stage.depth is not None and step >= depth_degradation_begins(stage.depth, stage.training.steps)
        return SampleView(
            row,
            start=variant if weak_start else None,
            depth=variant if weak_depth and phased_in else None,
            degraded=weak_start and is_degraded(self.latents.spec.frame_operators(row, variant)),
            dense=dense * strength,
            sparse=float(sparse),
        )

    def _timestep(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Timestep, sigma and loss weight of a clip, [1] each."""
        draw = draw_timesteps(choose(self.schedules, [1.0] * len(self.schedules), generator), 1, generator)
        return draw.timestep, draw.sigma, draw.weight if self.stage.timesteps.bell else torch.ones(1)

    def _sample(self, network: ControlledBackbone, conditions: Conditions) -> Tensor:
        """Clips [B, 3, T, H, W] from fixed noise."""
        shape = (len(conditions.image), 16, *conditions.image.shape[2:])
        with _plain_attention(network):
            latents = sample_clips(network, torch.randn(shape, generator=torch.Generator().manual_seed(1)), conditions)
        return self.codec.decode_pixels(latents)

    def _inverted(self, clips: Sequence[Clip]) -> Tensor:
        """Control latents of depth in the wrong polarity."""
        pictures = [255 - clip.dense for clip in clips]
        videos, firsts = zip(*(encode_control(frames, self.codec) for frames in pictures), strict=True)
        return control_condition(torch.cat(videos), torch.cat(firsts))


def _degraded_samples(conditions: Conditions, flags: Tensor | None) -> DegradedSamples | None:
    """The degraded samples of a batch; the last frame of a history is the start frame, here as in generation."""
    if flags is None:
        return None
    start = conditions.image[:, 4:, :1]
    has_history = torch.full_like(flags, conditions.history is not None)
    return DegradedSamples(flags, start, has_history, None if conditions.history is None else start)


def sheet_rows(latents: ClipLatents, stage: Stage) -> list[int]:
    """Clips for a sheet, spread evenly over those that have the sheet's history."""
    source = latents.source
    fit = [row for row in range(len(source)) if source.past(row) + 1 >= stage.sheet_history]
    if not fit:
        raise ValueError(f"no held-out clip has the {stage.sheet_history} frames of history that sheets are made with")
    places = np.linspace(0, len(fit), min(stage.sheet_clips, len(fit)), endpoint=False).astype(int)
    return [fit[place] for place in places]


def _is_matrix(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and name.endswith(".weight")


@contextmanager
def _plain_attention(network: nn.Module) -> Iterator[None]:
    """On a CPU, torch's plain attention instead of the fused one, which is slower in training.

    Not where activations are recomputed in the backward pass: that happens outside of this block, so the fused attention would
    recompute what the plain one computed.
    """
    if next(network.parameters()).device.type != "cpu" or network.backbone.gradient_checkpointing:
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the flag is the CPU's too: no detour over float32
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
