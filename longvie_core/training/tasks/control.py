"""What LongVie learns: the velocity of clips from their controls, start frame and history, all of them as they wear out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...backends.diffusers.blocks import adapt_backbone, control_network
from ...backends.diffusers.forward import velocity
from ...backends.diffusers.sampler import check_fit
from ...backends.diffusers.weights import original_state
from ...disk.atomic import write_atomically
from ...model.clip import encode_control
from ...model.conditioning import control_condition, image_condition, pixels_from_uint8
from ...model.dual_control import DualControl, DualControlConfig, Streams
from ...model.noise import initial_latents
from ...model.schedule import add_noise, flow_sigmas, sample_euler
from ...model.wan import CrossAttention, WanConfig
from ...weights.backbone import diffusers_backbone_config
from ..data.source import Clip
from ..data.table import ClipLatents, TrainingCodec, Variant
from ..degradation import chance, choose, depth_degradation_begins, draw_dense_strength, draw_history_length, is_degraded
from ..initialise import half_width_weights
from ..loop.muon import MatrixMuon
from ..loop.trainer import generator_for
from ..losses import DegradedSamples, batch_terms, draw_timesteps, loss_terms, training_schedule
from ..stages import CONTROL_ONLY, EVERYTHING, WITH_SELF_ATTENTION, Stage
from .vae import picture_of, psnr

SAMPLING_STEPS = 8
"""Euler steps of sheets; at the tiny model's size more of them change nothing."""

SHEET_ROWS = 4
"""Clips that a sheet shows; its figures are means of more."""


# ---- the network


@dataclass(frozen=True)
class WeightedControl:
    """A control network whose streams are weighed clip by clip; for :func:`longvie_core.backends.diffusers.forward.velocity`.

    Args:
        control: the network.
        dense, sparse: weights [B]; where both are 0 nothing is added, the shared linear's bias included.
    """

    control: DualControl
    dense: Tensor
    sparse: Tensor

    @property
    def config(self) -> DualControlConfig:
        return self.control.config

    def embed(self, *given: object) -> Streams:
        return self.control.embed(*given)

    def residual(self, layer: int, streams: Streams) -> Tensor:
        """:meth:`DualControl.residual`, with ``phi_b(lambda * dense + sparse)`` (P1 eq. 3) for each clip."""
        shared = {"e": streams.e, "freqs": streams.freqs, "context": streams.context, "context_img_len": streams.image_tokens}
        streams.dense = self.control.control_blocks_dense[layer](streams.dense, **shared)
        streams.sparse = self.control.control_blocks_sparse[layer](streams.sparse, **shared)
        dense, sparse = (weight[:, None, None] for weight in (self.dense, self.sparse))
        added = self.control.control_combine_linears[layer](dense * streams.dense + sparse * streams.sparse)
        return ((dense + sparse) > 0) * added


class ControlledBackbone(nn.Module):
    """Backbone and control network as one module, so that gradients are averaged over all that is learnt."""

    def __init__(self, backbone: WanTransformer3DModel, control: DualControl) -> None:
        super().__init__()
        check_fit(backbone, control)
        self.backbone, self.control = backbone, control
        self.asked_by_text: list[nn.Module] = []

    def never_read_text(self) -> None:
        """Train for no text alone: its one zero token gets all the attention, whoever asks, so nobody has to.

        The same velocity, a seventh faster at the tiny model's size. What would have asked (queries, keys, the norm before
        them) has no influence then and is not learnt.

        Raises:
            ValueError: the backbone attends to pictures too.
        """
        if self.backbone.config.image_dim is not None:
            raise ValueError("this backbone has an image branch: its cross-attention has more to read than one token")
        for block in self.backbone.blocks:
            block.attn2.set_processor(OneToken())
            attention = block.attn2
            self.asked_by_text += [block.norm2, attention.to_q, attention.to_k, attention.norm_q, attention.norm_k]
        for block in (*self.control.control_blocks_dense, *self.control.control_blocks_sparse):
            attention = block.cross_attn
            attention.forward = partial(_one_token, attention)
            self.asked_by_text += [block.norm3, attention.q, attention.k, attention.norm_q, attention.norm_k]

    def forward(self, latents: Tensor, timestep: Tensor, given: Conditions) -> Tensor:
        """Velocity (noise - data) of noisy latents [B, 16, f, h, w] at ``timestep`` [B]."""
        return velocity(
            self.backbone,
            WeightedControl(self.control, given.dense_strength, given.sparse_strength),
            latents,
            timestep,
            given.text,
            given.image,
            given.dense,
            given.sparse,
            given.history,
            given.vision,
        )


class OneToken:
    """Cross-attention to a single token, as a processor of diffusers."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor, *_: object) -> Tensor:
        return attn.to_out[0](attn.to_v(encoder_hidden_states)).expand_as(hidden_states)


def _one_token(attention: CrossAttention, x: Tensor, context: Tensor, _image_tokens: None) -> Tensor:
    """Cross-attention to a single token, in a block of the control network."""
    return attention.o(attention.v(context)).expand_as(x)


@dataclass(frozen=True)
class Conditions:
    """What a batch of clips is conditioned on.

    Args:
        image: [B, 20, f, h, w].
        dense, sparse: [B, 36, f, h, w].
        dense_strength, sparse_strength: [B].
        history: [B, 16, f_h, h, w], or ``None``.
        text: [B, L, text_dim].
        vision: [B, 257, 1280] where the backbone has an image branch.
    """

    image: Tensor
    dense: Tensor
    sparse: Tensor
    dense_strength: Tensor
    sparse_strength: Tensor
    history: Tensor | None
    text: Tensor
    vision: Tensor | None


class ShownLatents(NamedTuple):
    """What :class:`Conditions` are made of; latents [B, 16, .., h, w] in float16.

    Args:
        image: first frame, then grey.
        dense, sparse: controls.
        dense_first, sparse_first: their first frame, then grey.
        dense_strength, sparse_strength, history, text, vision: see :class:`Conditions`.
    """

    image: Tensor
    dense: Tensor
    dense_first: Tensor
    sparse: Tensor
    sparse_first: Tensor
    dense_strength: Tensor
    sparse_strength: Tensor
    history: Tensor | None
    text: Tensor
    vision: Tensor | None

    def conditions(self) -> Conditions:
        """In float32, with the masks."""
        return Conditions(
            image=image_condition(self.image.float()),
            dense=control_condition(self.dense.float(), self.dense_first.float()),
            sparse=control_condition(self.sparse.float(), self.sparse_first.float()),
            dense_strength=self.dense_strength,
            sparse_strength=self.sparse_strength,
            history=None if self.history is None else self.history.float(),
            text=self.text,
            vision=None if self.vision is None else self.vision.float(),
        )


class Batch(NamedTuple):
    """What a step learns from.

    Args:
        latents: what the clips are conditioned on.
        data: float16 latents of the clips [B, 16, f, h, w].
        noise: on them.
        timestep, sigma, weight: of each clip, [B].
        degraded: whose start frame is not the clean one, bool [B]; ``None`` where the stage never degrades any.
    """

    latents: ShownLatents
    data: Tensor
    noise: Tensor
    timestep: Tensor
    sigma: Tensor
    weight: Tensor
    degraded: Tensor | None


def sampled(network: ControlledBackbone, noise: Tensor, given: Conditions, steps: int = SAMPLING_STEPS) -> Tensor:
    """Latents [B, 16, f, h, w] of clips from noise of that shape, in float32 on the network's device."""
    backbone = network.backbone
    device, dtype = backbone.device, backbone.patch_embedding.weight.dtype
    moved = {name: None if value is None else value.to(device, dtype) for name, value in vars(given).items()}
    noise, told = noise.to(device), Conditions(**moved)
    history = None if given.history is None else given.history.to(device)

    def predicted(latents: Tensor, timestep: Tensor, _positive: bool) -> Tensor:
        return network(latents.to(dtype), timestep.expand(len(latents)), told).float()

    *_, latents = sample_euler(predicted, initial_latents(noise, history), flow_sigmas(steps).to(noise), cfg=1)
    return latents


def tiny_network(backbone: WanConfig, control: DualControlConfig) -> ControlledBackbone:
    """Fresh weights for joint training: torch's usual ones, and zero where the control network meets the backbone.

    The input linears are not zero as in P1, where a trained backbone has to be kept: the streams learn from the start.
    """
    made = adapt_backbone(WanTransformer3DModel(**diffusers_backbone_config(backbone)))
    streams = control_network(control)
    for linear in streams.control_combine_linears:
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return ControlledBackbone(made, streams)


def control_from_backbone(backbone: WanTransformer3DModel, config: DualControlConfig) -> DualControl:
    """A control network that starts as the interleaved halves of the backbone's first blocks (P1 appendix C)."""
    with torch.device("meta"):
        net = control_network(config)
    weights = half_width_weights(original_state(backbone), config)
    net.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return net


def require_gradients(network: ControlledBackbone, learns: str) -> None:
    """Let the stage's weights require gradients, and no others (P2: the control network; in stage 3 self-attention too)."""
    network.backbone.requires_grad_(learns == EVERYTHING)
    network.control.requires_grad_(True)
    if learns == WITH_SELF_ATTENTION:
        for block in network.backbone.blocks:
            block.attn1.requires_grad_(True)
    for module in network.asked_by_text:
        module.requires_grad_(False)


# ---- the task


class ControlTask:
    """:class:`~longvie_core.training.loop.trainer.Task`: one stage of LongVie's training.

    Args:
        stage: its settings.
        network: what it starts from.
        latents: of the training clips, with all that the stage wants.
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
        require_gradients(network, stage.learns)
        if stage.checkpointing:
            network.backbone.enable_gradient_checkpointing()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        chosen = self.stage.optimiser
        learnt = {name: value for name, value in self.network.named_parameters() if value.requires_grad}
        matrices = [
            value for name, value in learnt.items() if chosen.matrix_rate and "blocks" in name and _is_matrix(name, value)
        ]
        others = [value for value in learnt.values() if not any(value is matrix for matrix in matrices)]
        made = [torch.optim.AdamW(others, lr=chosen.rate, betas=chosen.betas, weight_decay=chosen.weight_decay)]
        if matrices:
            made.append(MatrixMuon(matrices, chosen.matrix_rate))
        return made

    def batch(self, step: int, generator: torch.Generator) -> Batch:
        rows, history = self.chosen(step, generator)
        shown = [self.shown(row, step, generator) for row in rows]
        draws = [self._timestep(generator) for _ in rows]
        timestep, sigma, weight = (torch.cat(values) for values in zip(*draws, strict=True))
        data = self.latents.clean.kept("video", rows)
        flags = torch.tensor([clip.degraded for clip in shown]) if self.stage.first_frame is not None else None
        noise = torch.randn(data.shape, generator=generator)
        return Batch(read_shown(self.latents, shown, history, self.text), data, noise, timestep, sigma, weight, flags)

    def losses(self, network: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        given, data = batch.latents.conditions(), batch.data.float()
        noisy = add_noise(data, batch.noise, batch.sigma[:, None, None, None, None])
        with _attention(self.network):
            prediction = network(noisy, batch.timestep, given)
        terms = loss_terms(prediction, batch.noise, data, _degraded(given, batch.degraded), self.stage.loss)
        return batch_terms(terms, batch.weight)

    def sheet(self, network: ControlledBackbone) -> tuple[np.ndarray, Mapping[str, float]]:
        """Held-out clips, their controls, and what becomes of them; PSNR in dB of all frames but the given first one."""
        rows = sheet_rows(self.held_out, self.stage)
        device = next(network.parameters()).device
        clips = [self.held_out.source[row] for row in rows]
        truth = _pixels([clip.frames for clip in clips])
        shown = [Shown(row) for row in rows]
        latents = read_shown(self.held_out, shown, self.stage.sheet_history, self.text)
        given = send_to_device(latents, device).conditions()
        inverted = replace(given, dense=self._inverted(clips).to(device))
        on, off = torch.ones(len(rows), device=device), torch.zeros(len(rows), device=device)
        tried = {
            "both": given,
            "dense": replace(given, dense_strength=on, sparse_strength=off),
            "sparse": replace(given, dense_strength=off, sparse_strength=on),
            "none": replace(given, dense_strength=off, sparse_strength=off),
            "dense inverted": inverted,
        }
        seen = {name: self._sampled(network, conditions).cpu() for name, conditions in tried.items()}
        seen["vae"] = self.codec.decode_pixels(self.held_out.clean.read("video", rows)).cpu()
        figures = {
            f"psnr {name}": float(np.mean([psnr(one[:, 1:], wanted[:, 1:]) for one, wanted in zip(found, truth, strict=True)]))
            for name, found in seen.items()
        }
        columns = (truth, _pixels([clip.dense for clip in clips]), _pixels([clip.sparse for clip in clips]))
        return _grid([*columns, seen["both"], seen["none"]]), figures

    def export(self, network: ControlledBackbone, folder: Path) -> None:
        """``control.safetensors`` in the published key layout, and what else was learnt: ``dit.safetensors`` (self-attention,
        an overlay on the base) or the whole ``backbone.safetensors``."""
        folder.mkdir(parents=True, exist_ok=True)
        dtype = getattr(torch, self.stage.weights)
        for name, (weights, metadata) in exported(network, self.stage.learns).items():
            tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in weights.items()}
            write_atomically(folder / name, partial(save_file, tensors, metadata=metadata))

    def chosen(self, step: int, generator: torch.Generator) -> tuple[list[int], int]:
        """The clips of a step, with one length of history that all of them have, and those of the other processes too."""
        own = generator_for(self.stage.training.seed, step)
        length = draw_history_length(self.stage.histories, int(self.past.max()) + 1, own)
        rows = np.flatnonzero(self.past + 1 >= length)
        places = torch.randint(len(rows), (self.stage.clips,), generator=generator)
        return rows[places.numpy()].tolist(), length

    def shown(self, row: int, step: int, generator: torch.Generator) -> Shown:
        """How a clip is shown at a step of the training."""
        stage, wanted = self.stage, self.latents.wanted
        variant = int(torch.randint(stage.variants, (), generator=generator))
        dense, sparse = choose(((1, 1), (1, 0), (0, 1), (0, 0)), list(vars(stage.streams).values()), generator)
        strength = draw_dense_strength(stage.dense_features, generator)
        weak_start = stage.first_frame is not None and chance(stage.first_frame.probability, generator)
        weak_depth = stage.depth is not None and chance(stage.depth.probability, generator)
        phased_in = stage.depth is not None and step >= depth_degradation_begins(stage.depth, stage.training.steps)
        return Shown(
            row,
            start=variant if weak_start else None,
            depth=variant if weak_depth and phased_in else None,
            degraded=weak_start and is_degraded(wanted.frame_operators(row, variant)),
            dense=dense * strength,
            sparse=float(sparse),
        )

    def _timestep(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Timestep, sigma and loss weight of a clip, [1] each."""
        draw = draw_timesteps(choose(self.schedules, [1.0] * len(self.schedules), generator), 1, generator)
        return draw.timestep, draw.sigma, draw.weight if self.stage.timesteps.bell else torch.ones(1)

    def _sampled(self, network: ControlledBackbone, given: Conditions) -> Tensor:
        """Clips [B, 3, T, H, W] from fixed noise."""
        shape = (len(given.image), 16, *given.image.shape[2:])
        with _attention(network):
            latents = sampled(network, torch.randn(shape, generator=torch.Generator().manual_seed(1)), given)
        return self.codec.decode_pixels(latents)

    def _inverted(self, clips: Sequence[Clip]) -> Tensor:
        """Control latents of depth in the wrong polarity."""
        pictures = [255 - clip.dense for clip in clips]
        videos, firsts = zip(*(encode_control(frames, self.codec) for frames in pictures), strict=True)
        return control_condition(torch.cat(videos), torch.cat(firsts))


@dataclass(frozen=True)
class Shown:
    """How a clip is shown.

    Args:
        row: its number.
        start, depth: which variant of start frame and history, and of the depth.
        degraded: whether the start frame differs from the clean one.
        dense, sparse: weights of the streams.
    """

    row: int
    start: Variant = None
    depth: Variant = None
    degraded: bool = False
    dense: float = 1.0
    sparse: float = 1.0


def read_shown(latents: ClipLatents, shown: Sequence[Shown], history: int, text: Callable[[str], Tensor]) -> ShownLatents:
    """The latents of clips as they are shown, with a history of so many frames."""
    starts, depths = [clip.start for clip in shown], [clip.depth for clip in shown]
    clean = [None] * len(shown)
    rows = [clip.row for clip in shown]

    def read(name: str, variants: Sequence[Variant]) -> Tensor:
        return _read_variants(latents, name, rows, variants)

    return ShownLatents(
        image=read("image", starts),
        dense=read("dense", depths),
        dense_first=read("dense_first", depths),
        sparse=read("sparse", clean),
        sparse_first=read("sparse_first", clean),
        dense_strength=torch.tensor([clip.dense for clip in shown]),
        sparse_strength=torch.tensor([clip.sparse for clip in shown]),
        history=read(f"history_{history}", starts) if history else None,
        text=torch.cat([text(latents.source.text(row)) for row in rows]),
        vision=read("vision", starts) if latents.wanted.vision else None,
    )


def _read_variants(latents: ClipLatents, name: str, rows: Sequence[int], variants: Sequence[Variant]) -> Tensor:
    """float16 [len(rows), ...], each clip's tensor from the table of its variant; clips of one table are read at once."""
    found: Tensor | None = None
    for variant in set(variants):
        places = [place for place, other in enumerate(variants) if other == variant]
        part = latents.table(variant).kept(name, [rows[place] for place in places])
        if found is None:
            found = part.new_empty((len(rows), *part.shape[1:]))
        found[places] = part
    return found


def _degraded(given: Conditions, flags: Tensor | None) -> DegradedSamples | None:
    """What the loss has to know; the last frame of a history is the start frame, here as in generation."""
    if flags is None:
        return None
    start = given.image[:, 4:, :1]
    has_history = torch.full_like(flags, given.history is not None)
    return DegradedSamples(flags, start, has_history, None if given.history is None else start)


def sheet_rows(latents: ClipLatents, stage: Stage) -> list[int]:
    """Clips for a sheet, spread evenly over those that have the sheet's history."""
    source = latents.source
    fit = [row for row in range(len(source)) if source.past(row) + 1 >= stage.sheet_history]
    if not fit:
        raise ValueError(f"no held-out clip has the {stage.sheet_history} frames of history that sheets are made with")
    places = np.linspace(0, len(fit), min(stage.sheet_clips, len(fit)), endpoint=False).astype(int)
    return [fit[place] for place in places]


def exported(network: ControlledBackbone, learns: str) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
    """File name -> weights under their published keys, and metadata: what a stage has learnt."""
    config = network.control.config
    files = {"control.safetensors": (network.control.state_dict(), {"config": json.dumps({"head_dim": config.head_dim})})}
    if learns == CONTROL_ONLY:
        return files
    backbone = original_state(network.backbone)
    if learns == WITH_SELF_ATTENTION:
        return files | {"dit.safetensors": ({key: value for key, value in backbone.items() if ".self_attn." in key}, {})}
    heads = network.backbone.config.num_attention_heads
    return files | {"backbone.safetensors": (backbone, {"config": json.dumps({"transformer": {"num_heads": heads}})})}


def _is_matrix(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and name.endswith(".weight")


@contextmanager
def _attention(network: nn.Module) -> Iterator[None]:
    """On a CPU torch's fused attention is slower in training than the plain one.

    What is computed again in the backward pass would be so outside of this block, and has to be computed alike.
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


def _pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """uint8 clips [T, H, W, 3] -> [B, 3, T, H, W] in -1 .. 1."""
    return torch.from_numpy(np.stack([pixels_from_uint8(clip) for clip in clips])).permute(0, 4, 1, 2, 3)


def _grid(columns: Sequence[Tensor]) -> np.ndarray:
    """Each clip's middle and last frame in a row of pictures, uint8 [H, W, 3]."""
    rows = []
    for clip in range(min(SHEET_ROWS, len(columns[0]))):
        frames = columns[0].shape[2]
        for number in (frames // 2, frames - 1):
            rows.append(torch.cat([column[clip, :, number] for column in columns], dim=-1))
    return picture_of(torch.cat(rows, dim=-2))
