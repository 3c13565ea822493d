"""LongVie on diffusers' own Wan classes: training, generation without ComfyUI, several GPUs.

:func:`velocity` is the controlled forward; it builds a graph like any module, so the trainer uses it too. History joins the
clip on the frame axis, forward hooks on ``blocks`` add the control network's residuals; diffusers' classes are used as they
are, so their gradient checkpointing, offloading, attention backends and context parallelism go on working.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttention
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..autoregress import ClipInputs, HistorySettings, initial_latents, sample_euler
from ..checkpoint import (
    BACKBONE,
    VAE,
    Layout,
    Weights,
    diffusers_backbone_config,
    read_backbone,
    read_control,
    read_overlay,
    read_vae,
)
from ..conditioning import first_frame_then_grey, history_input, image_condition, pixels_from_uint8
from ..dual_control import DualControl, DualControlConfig, Streams, Strengths
from ..prompts import ClipStrengths
from ..wan import IMAGE_TOKENS, SelfAttention, WanBlock, apply_rope, attention, rope_frequencies, sinusoidal_embedding

# Weights


def load_backbone(
    path: Path, overlay: Path | None = None, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> WanTransformer3DModel:
    """A Wan image-to-video backbone from an original file or from a diffusers folder.

    Args:
        path: see :func:`longvie_core.checkpoint.read_weights`.
        overlay: LongVie's ``dit.safetensors``, whose self-attention goes in place of the backbone's.
        dtype: of the weights; those that diffusers keeps in float32 (norms, modulation, time embedding) stay so.
        device: where they go, one tensor at a time.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.checkpoint.read_backbone` and ``read_overlay``.
    """
    config, weights = read_backbone(path)
    replaced = None if overlay is None else read_overlay(overlay, config.num_layers, config.dim)
    with torch.device("meta"):
        net = WanTransformer3DModel(**diffusers_backbone_config(config))
    state = {}
    for key, value in _tensors(weights, replaced):
        name = BACKBONE.to_diffusers(key)
        keep = not set(WanTransformer3DModel._keep_in_fp32_modules).isdisjoint(name.split("."))
        state[name] = value.to(device, torch.float32 if keep else dtype)
    net.load_state_dict(state, assign=True)
    # Not in the checkpoint: a model made on the meta device has none yet.
    rope = net.rope
    net.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len).to(device)
    return adapt_backbone(net).eval()


def _tensors(weights: Weights, replaced: Layout | None) -> Iterator[tuple[str, Tensor]]:
    """(original key, tensor) one at a time, those of the overlay in place of the backbone's."""
    kept = weights.where.keys() - (replaced.keys.keys() if replaced else set())
    with weights.reader() as read:
        yield from ((key, read(key)) for key in sorted(kept))
    if replaced:
        yield from replaced.tensors()


def adapt_backbone(net: WanTransformer3DModel) -> WanTransformer3DModel:
    """Make a backbone of diffusers compute what the published weights were made for, in place.

    Cross-attention finds the image tokens at any text length (diffusers counts on 512 text tokens), and the sinusoid of the
    timestep is taken in float64. What ``from_pretrained`` gives needs this once; :func:`load_backbone` has done it.
    """
    if net.config.image_dim is not None:
        for block in net.blocks:
            block.attn2.set_processor(CrossAttentionProcessor())
    net.condition_embedder.timesteps_proj = TimestepSinusoid(net.config.freq_dim)
    return net


class TimestepSinusoid(nn.Module):
    """:func:`longvie_core.wan.sinusoidal_embedding` as a module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, timestep: Tensor) -> Tensor:
        return sinusoidal_embedding(timestep, self.dim)


class CrossAttentionProcessor:
    """Cross-attention of a backbone with image branch: image tokens first, then any number of text tokens."""

    _attention_backend = None

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        image, text = encoder_hidden_states[:, :IMAGE_TOKENS], encoder_hidden_states[:, IMAGE_TOKENS:]
        query = attn.norm_q(attn.to_q(hidden_states))
        from_text = self._attend(attn.heads, query, attn.norm_k(attn.to_k(text)), attn.to_v(text))
        image_key = attn.norm_added_k(attn.add_k_proj(image))
        from_image = self._attend(attn.heads, query, image_key, attn.add_v_proj(image))
        return attn.to_out[0](from_text + from_image)

    def _attend(self, heads: int, *tensors: Tensor) -> Tensor:
        query, key, value = (tensor.unflatten(2, (heads, -1)) for tensor in tensors)
        return dispatch_attention_fn(query, key, value, backend=self._attention_backend).flatten(2, 3).type_as(query)


def original_state(net: WanTransformer3DModel | AutoencoderKLWan) -> dict[str, Tensor]:
    """A state dict under the original key names; the tensors are the network's own."""
    names = VAE if isinstance(net, AutoencoderKLWan) else BACKBONE
    return {names.to_original(key): value for key, value in net.state_dict().items()}


def load_control(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> DualControl:
    """The control network from a file of any known layout.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.checkpoint.read_control`.
    """
    config, layout = read_control(path)
    with torch.device("meta"):
        net = control_network(config)
    net.load_state_dict({key: value.to(device, dtype) for key, value in layout.tensors()}, assign=True)
    return net.eval()


def control_network(config: DualControlConfig) -> DualControl:
    """The control network, uninitialised, on blocks that several processes can share."""

    def block() -> WanBlock:
        made = WanBlock(config.control_dim, config.ffn_dim, config.num_heads, image=config.image, eps=config.eps)
        made.self_attn = ControlSelfAttention(config.control_dim, config.num_heads, config.eps)
        return made

    return DualControl(config, block)


class ControlSelfAttention(SelfAttention):
    """Self-attention of a control block; under context parallelism of this process's tokens to everybody's."""

    mesh = None

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        query, key = (
            apply_rope(tokens.unflatten(-1, (self.num_heads, -1)), freqs).flatten(2)
            for tokens in (self.norm_q(self.q(x)), self.norm_k(self.k(x)))
        )
        key, value = (_gathered(tokens, self.mesh) for tokens in (key, self.v(x)))
        return self.o(attention(query, key, value, self.num_heads))


def load_vae(
    path: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> AutoencoderKLWan:
    """The Wan 2.1 VAE from an original file or from a diffusers folder.

    Raises:
        FileNotFoundError, ValueError: see :func:`longvie_core.checkpoint.read_vae`.
    """
    width, weights = read_vae(path)
    with torch.device("meta"):
        net = AutoencoderKLWan(base_dim=width)
    with weights.reader() as read:
        state = {VAE.to_diffusers(key): read(key).to(device, dtype) for key in weights.where}
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval()


def check_fit(backbone: WanTransformer3DModel, control: DualControl) -> None:
    """Refuse a control network that was made for another backbone, and a backbone that takes no image.

    Raises:
        ValueError: naming the numbers that differ.
    """
    ours, theirs = control.config, backbone.config
    if theirs.in_channels != 36:
        raise ValueError(
            f"this backbone takes {theirs.in_channels} input channels: LongVie needs an image-to-video one with 36 (noise 16, "
            "mask 4, image 16), such as Wan2.1-I2V-14B-480P"
        )
    pairs = {
        "width": (ours.dim, theirs.num_attention_heads * theirs.attention_head_dim),
        "head width": (ours.head_dim, theirs.attention_head_dim),
        "image branch": (ours.image, theirs.image_dim is not None),
    }
    wrong = [f"{name} {mine} against {other}" for name, (mine, other) in pairs.items() if mine != other]
    if ours.num_layers > theirs.num_layers:
        wrong.append(f"{ours.num_layers} controlled blocks against {theirs.num_layers} in all")
    if wrong:
        raise ValueError(f"control network and backbone do not fit: {', '.join(wrong)}. Use the pair that belongs together")


# The controlled forward


def velocity(
    backbone: WanTransformer3DModel,
    control: DualControl | None,
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    condition: Tensor,
    dense: Tensor | None = None,
    sparse: Tensor | None = None,
    history: Tensor | None = None,
    clip_features: Tensor | None = None,
    strengths: Strengths | None = None,
) -> Tensor:
    """One evaluation of the controlled backbone (P2 section 3.2), differentiable in everything that is a tensor here.

    With ``backbone.enable_gradient_checkpointing()`` the control layers are checkpointed too. Everything is taken in the dtype
    that it comes in: give latents, text and features in the backbone's, ``timestep`` in float32.

    Args:
        backbone: from :func:`load_backbone`, or through :func:`adapt_backbone`.
        control: control network, or ``None`` for the backbone alone.
        latents: noisy latents [B, 16, f, h, w].
        timestep: [B], 1000 * sigma.
        text: [B, L, text_dim].
        condition: [B, 20, f, h, w], mask and image latents (:func:`longvie_core.conditioning.image_condition`).
        dense, sparse: control latents [B, 36, f, h, w]; ``None`` leaves the modality out.
        history: normalised latents [B, 16, f_h, h, w], or ``None``.
        clip_features: [B, 257, 1280] where the backbone has an image branch.
        strengths: of the two streams, 1 each by default.

    Returns:
        Velocity (noise - data) [B, 16, f, h, w].

    Raises:
        ValueError: the backbone has an image branch and no features were given.
    """
    if backbone.config.image_dim is not None and clip_features is None:
        raise ValueError("this backbone has an image branch: give the first frame's CLIP vision features")
    strengths = strengths or Strengths()
    strengths = Strengths(0 if dense is None else strengths.dense, 0 if sparse is None else strengths.sparse)
    clip = torch.cat([latents, condition], dim=1)
    past = clip[:, :, :0] if history is None else history_input(history)
    with ExitStack() as stack:
        if control is not None and strengths.active:
            streams = _start(backbone, control, timestep, text, dense, sparse, clip_features, strengths)
            checkpointed = backbone.gradient_checkpointing and torch.is_grad_enabled()
            residuals = _residuals(control, streams, checkpointed)
            # A block that is checkpointed must not record the control network's own graph: it has to be there before.
            residuals = iter(list(residuals)) if checkpointed else residuals
            stack.enter_context(_added_after_blocks(backbone, control.config.num_layers, residuals, past))
        full = torch.cat([past, clip], dim=2)
        (out,) = backbone(full, timestep, text, clip_features, return_dict=False)
    return out[:, :, past.shape[2] :]


def _start(backbone, control, timestep, text, dense, sparse, clip_features, strengths) -> Streams:
    """The control streams before the first layer, from the backbone's own embeddings."""
    _, e0, context, image = backbone.condition_embedder(timestep, text, clip_features)
    mesh = _mesh(backbone)

    def tokens(latents: Tensor) -> Tensor:
        return _own_part(backbone.patch_embedding(latents).flatten(2).transpose(1, 2), mesh, dim=1)

    given = dense if sparse is None else sparse
    grid = tuple(size // patch for size, patch in zip(given.shape[2:], backbone.config.patch_size, strict=True))
    return control.embed(
        tokens(dense) if strengths.dense else None,
        tokens(sparse) if strengths.sparse else None,
        context if image is None else torch.cat([image, context], dim=1),
        e0.unflatten(1, (6, -1)),
        _own_part(rope_frequencies(grid, backbone.config.attention_head_dim, given.device), mesh, dim=0),
        None if image is None else image.shape[1],
        strengths,
    )


def _residuals(control: DualControl, streams: Streams, checkpointed: bool) -> Iterator[Tensor]:
    """What the controlled blocks get added, in order: [B, S, dim] of the clip's tokens."""
    for layer in range(control.config.num_layers):
        if checkpointed:
            residual, streams = checkpoint(_layer, control, layer, streams, use_reentrant=False)
        else:
            residual, streams = _layer(control, layer, streams)
        yield residual


def _layer(control: DualControl, layer: int, streams: Streams) -> tuple[Tensor, Streams]:
    """One layer that leaves the streams given as they are, so that it can be run again."""
    streams = replace(streams)
    return control.residual(layer, streams), streams


@contextmanager
def _added_after_blocks(
    backbone: WanTransformer3DModel, layers: int, residuals: Iterator[Tensor], past: Tensor
) -> Iterator[None]:
    """Forward hooks on the first ``layers`` blocks that add the residuals to the clip's tokens, the history's left alone.

    The addition saves nothing for the backward pass, so a checkpointed block is recomputed rightly without its hook.
    """
    _, rows, columns = backbone.config.patch_size
    history_tokens = past.shape[2] * (past.shape[3] // rows) * (past.shape[4] // columns)
    mesh = _mesh(backbone)

    def add(_block: nn.Module, _inputs: tuple, tokens: Tensor) -> Tensor:
        residual = next(residuals)
        if history_tokens:  # then the processes' shares of the clip lie elsewhere than their shares of the whole
            residual = _own_part(F.pad(_gathered(residual, mesh), (0, 0, history_tokens, 0)), mesh, dim=1)
        return tokens + residual

    hooks = [block.register_forward_hook(add) for block in backbone.blocks[:layers]]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


# Several GPUs


def enable_context_parallel(backbone: WanTransformer3DModel, control: DualControl, **degrees: object) -> None:
    """Divide the tokens of one clip among the processes of the default group (start them with ``torchrun``).

    The backbone goes the way of diffusers' ``enable_parallelism``; the control network divides its tokens alike, and each of
    its self-attentions gathers the keys and values. For generation: gradients are not summed over the processes.

    Args:
        backbone, control: on this process's device.
        degrees: of diffusers' ``ContextParallelConfig``, such as ``ulysses_degree=8`` (the numbers of heads and of tokens must
            be divisible by it, or ``ulysses_anything=True`` added).
    """
    from diffusers import ContextParallelConfig

    backbone.enable_parallelism(config=ContextParallelConfig(**degrees))
    for block in (*control.control_blocks_dense, *control.control_blocks_sparse):
        block.self_attn.mesh = _mesh(backbone)


def _mesh(backbone: WanTransformer3DModel) -> dist.DeviceMesh | None:
    """Processes that share the backbone's tokens; ``None`` where it is not divided."""
    parallel = backbone._parallel_config
    return None if parallel is None else parallel.context_parallel_config._flattened_mesh


def _own_part(tokens: Tensor, mesh: dist.DeviceMesh | None, dim: int) -> Tensor:
    """This process's share of the tokens, divided as diffusers does it."""
    return tokens if mesh is None else tokens.tensor_split(mesh.size(), dim=dim)[dist.get_rank(mesh.get_group())]


def _gathered(tokens: Tensor, mesh: dist.DeviceMesh | None) -> Tensor:
    """All processes' tokens [B, S, ...], from the share of each."""
    if mesh is None:
        return tokens
    # Not by diffusers' own sharder: it exchanges the sizes on the GPU that torch was built for, even where there is none.
    size = torch.tensor([tokens.shape[1]], device=tokens.device)
    sizes = [torch.empty_like(size) for _ in range(mesh.size())]
    dist.all_gather(sizes, size, mesh.get_group())
    shares = [tokens.new_empty(tokens.shape[0], int(size), *tokens.shape[2:]) for size in sizes]
    dist.all_gather(shares, tokens.contiguous(), mesh.get_group())
    return torch.cat(shares, dim=1)


# Encoders


class VaeCodec:
    """Frames to normalised latents and back, by diffusers' Wan VAE.

    Args:
        vae: from :func:`load_vae`; it works in its own dtype and on its own device, latents are float32.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.mean, self.std = (
            torch.tensor(values, device=vae.device).view(1, -1, 1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] -> normalised latents [B, 16, f, h, w], the mean of the posterior."""
        latents = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        return self.normalised(latents)

    @torch.no_grad()
    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 16, f, h, w] -> pixels [B, 3, T, H, W] in [-1, 1]."""
        return self._decode(self.denormalised(latents))

    def normalised(self, latents: Tensor) -> Tensor:
        """Latents of the VAE as the backbone wants them."""
        return (latents.float() - self.mean) / self.std

    def denormalised(self, latents: Tensor) -> Tensor:
        """Latents as the VAE itself has them."""
        return latents.to(self.mean) * self.std + self.mean

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        """uint8 frames [H, W, 3] -> normalised latents [1, 16, f, h, w]."""
        return self._encode(pixels_from_uint8(np.stack(list(frames))))

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        """VAE(frame, then mid grey up to ``frames``) -> normalised latents [1, 16, f, h, w]."""
        return self._encode(first_frame_then_grey(frame, frames))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Latents as the VAE has them -> float32 frames [T, H, W, 3] in [-1, 1]."""
        return self._decode(latents)[0].permute(1, 2, 3, 0).cpu().numpy()

    def _encode(self, pixels: np.ndarray) -> Tensor:
        return self.encode_pixels(torch.from_numpy(pixels).permute(3, 0, 1, 2)[None])

    def _decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents.to(self.vae.device, self.vae.dtype), return_dict=False)[0].float()


TEXT_TOKENS = 512
"""Tokens of a prompt that Wan reads; those after its end are zero."""


class TextEncoder:
    """umT5 of transformers, from a local folder: a diffusers pipeline (``tokenizer`` and ``text_encoder``) or a plain one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no umT5 in safetensors, or no tokenizer.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.tokenizer = _pretrained(AutoTokenizer, folder, "tokenizer")
        self.model = _pretrained(UMT5EncoderModel, folder, "text_encoder", use_safetensors=True).to(device, dtype).eval()

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        """A prompt -> float32 [1, 512, width], zero after its end; runs of white space count as one space."""
        inputs = self.tokenizer(
            [" ".join(text.split())], padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt"
        ).to(self.model.device)
        hidden = self.model(inputs.input_ids, inputs.attention_mask).last_hidden_state
        return (hidden * inputs.attention_mask[..., None]).float()


CLIP_SIZE = 224
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class ImageEncoder:
    """CLIP vision of transformers, from a local folder: a diffusers pipeline (``image_encoder``) or a plain one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no CLIP vision model in safetensors.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> None:
        from transformers import CLIPVisionModel

        self.model = _pretrained(CLIPVisionModel, folder, "image_encoder", use_safetensors=True).to(device, dtype).eval()
        self.mean, self.std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))

    @torch.no_grad()
    def __call__(self, frame: np.ndarray) -> Tensor:
        """uint8 frame [H, W, 3] -> float32 [1, 257, 1280], the last block but one.

        Stretched to 224x224 bicubic without crop and without antialias, as the reference's weights saw it.
        """
        pixels = torch.from_numpy(frame).to(self.model.device).float().div(255).movedim(-1, 0)[None]
        pixels = F.interpolate(pixels, size=(CLIP_SIZE, CLIP_SIZE), mode="bicubic", align_corners=False)
        pixels = ((pixels - self.mean) / self.std).to(self.model.dtype)
        return self.model(pixels, output_hidden_states=True).hidden_states[-2].float()


def _pretrained(model_class: type, folder: Path, part: str, **options: object):
    """One part of a local diffusers pipeline, or what lies in the folder itself."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give a local one, nothing is downloaded")
    place = folder / part if (folder / part).is_dir() else folder
    try:
        return model_class.from_pretrained(place, local_files_only=True, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{place} holds no {part.replace('_', ' ')} that transformers can open: {error}") from error


# Sampling a clip


@dataclass(frozen=True)
class SamplingSettings:
    """Everything about sampling that is not the clip.

    Args:
        sigmas: [steps + 1] (:func:`longvie_core.schedule.flow_sigmas`).
        cfg: guidance scale; 1 leaves the negative prompt out.
        strengths: of the two streams.
        history: what later clips see of the one before.
    """

    sigmas: Tensor
    cfg: float = 5.0
    strengths: Strengths = field(default_factory=Strengths)
    history: HistorySettings = field(default_factory=HistorySettings)


def own_strengths(default: Strengths, own: ClipStrengths) -> Strengths:
    """A clip's own strengths, those of the settings where it has none."""
    return Strengths(
        default.dense if own.dense is None else own.dense, default.sparse if own.sparse is None else own.sparse
    )


class DiffusersBackend:
    """:class:`longvie_core.autoregress.ClipBackend` on diffusers' classes, sampled with Euler steps in float32.

    Args:
        backbone, control: on one device.
        codec: encodes and decodes.
        settings: of the sampling.
        text: ``clip number -> (positive, negative)`` embeddings [1, L, text_dim].
        vision: CLIP vision features [1, 257, 1280] of the start frame, where the backbone has an image branch.
        strengths: the clip's own control strengths, by clip number; those of the settings by default.

    Raises:
        ValueError: backbone and control network do not fit, or the backbone needs ``vision``.
    """

    def __init__(
        self,
        backbone: WanTransformer3DModel,
        control: DualControl,
        codec: VaeCodec,
        settings: SamplingSettings,
        text: Callable[[int], tuple[Tensor, Tensor]],
        vision: Callable[[np.ndarray], Tensor] | None = None,
        strengths: Callable[[int], ClipStrengths] | None = None,
    ) -> None:
        check_fit(backbone, control)
        if backbone.config.image_dim is not None and vision is None:
            raise ValueError("this backbone has an image branch: give a CLIP vision model (clip_vision_h) too")
        self.backbone, self.control, self.codec, self.settings = backbone, control, codec, settings
        self.text, self.vision, self.strengths = text, vision, strengths or (lambda _: ClipStrengths())
        self.encode = codec.encode
        self.encode_first_frame = self.encode_image = codec.encode_first_frame
        self.decode = codec.decode

    @torch.no_grad()
    def sample(self, inputs: ClipInputs) -> Tensor:
        """Latents [1, 16, f, h, w] of a clip, in the space that the VAE decodes."""
        vision = None if self.vision is None else self.vision(inputs.start_frame)
        positive, negative = self.text(inputs.clip)
        given = (image_condition(inputs.image), inputs.dense, inputs.sparse, inputs.history, vision, positive, negative)
        condition, dense, sparse, history, vision, positive, negative = (self._ready(value) for value in given)
        strengths = own_strengths(self.settings.strengths, self.strengths(inputs.clip))

        def model(latents: Tensor, timestep: Tensor, is_positive: bool) -> Tensor:
            return velocity(
                self.backbone,
                self.control,
                latents.to(condition),
                timestep.to(condition.device),
                positive if is_positive else negative,
                condition,
                dense,
                sparse,
                history,
                vision,
                strengths,
            ).float()

        past = None if inputs.history is None else inputs.history.to(condition.device)
        start = initial_latents(inputs.noise.to(condition.device), past, self.settings.history.first_frame_sigma)
        steps = sample_euler(model, start, self.settings.sigmas, self.settings.cfg)
        return self.codec.denormalised(deque(steps, maxlen=1).pop())

    def _ready(self, value: Tensor | None) -> Tensor | None:
        """On the backbone's device and in its dtype; under context parallelism the first process's, so that all are alike."""
        if value is None:
            return None
        weight = self.backbone.patch_embedding.weight
        value = value.to(weight.device, weight.dtype).contiguous()
        if _mesh(self.backbone) is not None:
            dist.broadcast(value, 0)
        return value
