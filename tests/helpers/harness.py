"""What the tests of this folder share: tiny models in the host's and in plain torch's classes, inputs, probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nodes
from devtools.tiny import randomize
from longvie_core.backends import comfy as backend
from longvie_core.model.clip import ClipStrengths
from longvie_core.model.conditioning import history_input
from longvie_core.model.dual_control import DualControl, DualControlConfig, Strengths, torch_dual_control, velocity
from longvie_core.model.noise import gaussian
from longvie_core.model.wan import WanConfig, WanModel

SHAPE = (3, 4, 6)
"""Latent frames, rows and columns where a test asks for nothing else."""

STEPS, SHIFT, SEED = 8, 5.0, 77
HOST_TOLERANCE = 5e-5
"""Largest difference between two float32 implementations of one tiny forward."""


# Weights


def write_weights(path: Path, net: nn.Module, seed: int) -> Path:
    """Seeded weights of ``net`` as a float16 file, as the published ones are."""
    weights = randomize(net, seed).state_dict()
    save_file({key: value.half().contiguous() for key, value in weights.items()}, path)
    return path


def wan_model(config: WanConfig, weights: dict[str, Tensor]) -> WanModel:
    """The plain torch backbone in float32."""
    net = WanModel(config)
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    return net.requires_grad_(False).eval()


def control_network(config: DualControlConfig, weights: dict[str, Tensor]) -> DualControl:
    """The plain torch control network in float32."""
    net = torch_dual_control(config)
    net.load_state_dict({key: value.float() for key, value in weights.items()})
    return net.requires_grad_(False).eval()


@dataclass(frozen=True)
class Rig:
    """One backbone and the control network that fits it: their files, on the host's classes and on plain torch."""

    backbone_file: Path
    control_file: Path
    model: ModelPatcher
    control: ModelPatcher
    plain: WanModel
    plain_control: DualControl

    @classmethod
    def load(cls, backbone_file: Path, control_file: Path, config: WanConfig, control: DualControlConfig) -> Rig:
        return cls(
            backbone_file,
            control_file,
            comfy.sd.load_diffusion_model(str(backbone_file)),
            backend.load_control(control_file),
            wan_model(config, load_file(backbone_file)),
            control_network(control, load_file(control_file)),
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        return load_file(self.backbone_file)

    def controlled(self, dense: float = 1.0, sparse: float = 1.0) -> ModelPatcher:
        """MODEL with control at these strengths over the whole schedule."""
        return backend.apply_control(self.model, self.control, backend.ModalityRange(dense), backend.ModalityRange(sparse))

    def velocity(self, sample: Sample, strengths: Strengths | None = None) -> Tensor:
        """The same evaluation on plain torch."""
        return plain_velocity(self.plain, self.plain_control, sample, strengths)


def plain_velocity(plain: WanModel, control: DualControl | None, sample: Sample, strengths: Strengths | None = None) -> Tensor:
    """:func:`longvie_core.model.dual_control.velocity` of a sample."""
    return velocity(
        plain,
        control,
        sample.x,
        sample.timestep,
        sample.text,
        sample.clip_features,
        sample.dense,
        sample.sparse,
        None if sample.history is None else history_input(sample.history),
        strengths,
    )


# Inputs


@dataclass(frozen=True)
class Sample:
    """Inputs of one model evaluation."""

    x: Tensor
    timestep: Tensor
    text: Tensor
    clip_features: Tensor | None
    dense: Tensor | None
    sparse: Tensor | None
    history: Tensor | None

    def only(self, index: int) -> Sample:
        """One sample of a batch."""
        rows = {name: value[index : index + 1] for name, value in vars(self).items() if value is not None}
        return replace(self, **rows)


def make_sample(
    rig: Rig, shape: tuple[int, int, int] = SHAPE, batch: int = 1, history: int = 0, timestep: float = 700.0, seed: int = 0
) -> Sample:
    """Seeded random inputs for the backbone of ``rig``; the samples of a batch differ in everything, timestep included."""
    config = rig.plain.config
    return Sample(
        x=gaussian(seed, (batch, 36, *shape)),
        timestep=timestep - 100.0 * torch.arange(batch),
        text=gaussian(seed + 1, (batch, 5, config.text_dim)),
        clip_features=gaussian(seed + 2, (batch, 257, 1280)) if config.has_image_input else None,
        dense=gaussian(seed + 3, (batch, 36, *shape)),
        sparse=gaussian(seed + 4, (batch, 36, *shape)),
        history=gaussian(seed + 5, (batch, 16, history, *shape[1:])) if history else None,
    )


def text_conditioning(seed: int, tokens: int = 5) -> backend.Conditioning:
    """CONDITIONING of a random prompt embedding."""
    return [[gaussian(seed, (1, tokens, 4096)), {}]]


# Running


def evaluate(patched: ModelPatcher, sample: Sample) -> Tensor:
    """One forward of the host's model with everything that is on the MODEL."""
    comfy.model_management.load_models_gpu([patched])
    options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
    conds = {backend.DENSE: sample.dense, backend.SPARSE: sample.sparse}
    if sample.history is not None:
        conds[backend.HISTORY] = [sample.history]
    return patched.model.diffusion_model(
        sample.x,
        sample.timestep,
        sample.text,
        clip_fea=sample.clip_features,
        transformer_options=options,
        **{key: value for key, value in conds.items() if value is not None},
    )


@dataclass(frozen=True)
class Clip:
    """What one clip is sampled from: latents as :class:`longvie_core.model.clip.ClipInputs` has them."""

    image: Tensor
    dense: Tensor | None
    sparse: Tensor | None
    history: Tensor | None
    vision: object | None = None
    strengths: ClipStrengths | None = None
    positive: backend.Conditioning = field(default_factory=lambda: text_conditioning(11))
    negative: backend.Conditioning = field(default_factory=lambda: text_conditioning(12))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.image.shape)

    @property
    def noise(self) -> Tensor:
        """What the host's KSampler draws from :data:`SEED`."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(SEED))

    def conditioned(self, text: backend.Conditioning) -> backend.Conditioning:
        pictured = backend.with_image(text, self.image, self.vision)
        return backend.with_control(pictured, self.dense, self.sparse, self.history, self.strengths)


def make_clip(shape: tuple[int, int, int] = SHAPE, history: int = 0, seed: int = 40, vision: object | None = None) -> Clip:
    """Seeded random latents of a clip."""
    return Clip(
        image=gaussian(seed, (1, 16, *shape)),
        dense=gaussian(seed + 1, (1, 36, *shape)),
        sparse=gaussian(seed + 2, (1, 36, *shape)),
        history=gaussian(seed + 3, (1, 16, history, *shape[1:])) if history else None,
        vision=vision,
    )


def shifted(model: ModelPatcher, shift: float = SHIFT) -> ModelPatcher:
    """MODEL behind the host's ModelSamplingSD3 node."""
    return ModelSamplingSD3().patch(model, shift)[0]


def ksampler(patched: ModelPatcher, clip: Clip, cfg: float = 1.0, steps: int = STEPS, denoise: float = 1.0) -> Tensor:
    """The host's KSampler node: euler, simple, an empty latent."""
    (latent,) = nodes.common_ksampler(
        patched,
        SEED,
        steps,
        cfg,
        "euler",
        "simple",
        clip.conditioned(clip.positive),
        clip.conditioned(clip.negative),
        {"samples": torch.zeros(clip.shape)},
        denoise=denoise,
    )
    return latent["samples"]


def sample_traced(patched: ModelPatcher, clip: Clip, steps: int = STEPS, on_step=None) -> tuple[Tensor, list[Tensor]]:
    """Sampling by the host's CFGGuider at cfg 1; also the latents at the start of every step."""
    guider = comfy.samplers.CFGGuider(patched)
    guider.set_conds(clip.conditioned(clip.positive), clip.conditioned(clip.negative))
    guider.set_cfg(1.0)
    trace = []

    def callback(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        trace.append(x.clone())
        if on_step is not None:
            on_step(step)

    sigmas = simple_sigmas(patched, steps)
    sampler = comfy.samplers.sampler_object("euler")
    latents = guider.sample(
        clip.noise, torch.zeros(clip.shape), sampler, sigmas, callback=callback, disable_pbar=True, seed=SEED
    )
    return latents, trace


def simple_sigmas(model: ModelPatcher, steps: int = STEPS) -> Tensor:
    """The host's 'simple' schedule on the model's own shift."""
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


# Watching


@contextmanager
def counted(**modules: nn.Module) -> Iterator[Counter]:
    """Counts how often each module runs, by the name it is given here."""
    calls: Counter[str] = Counter()

    def count(name: str):
        return lambda *_: calls.update([name])

    hooks = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def first_blocks(rig: Rig) -> dict[str, nn.Module]:
    """The first block of each control stream and of the backbone."""
    return {
        "dense": rig.control.model.control_blocks_dense[0],
        "sparse": rig.control.model.control_blocks_sparse[0],
        "backbone": rig.model.model.diffusion_model.blocks[0],
    }


@dataclass(frozen=True)
class Forward:
    """What a ``DIFFUSION_MODEL`` wrapper saw."""

    x: Tensor
    timestep: Tensor
    text: Tensor
    window: list[int] | None
    anchor: int | None
    conds: dict[str, object]
    output: Tensor


def watch_forwards(patched: ModelPatcher) -> list[Forward]:
    """Records every forward at the place in the wrapper chain that this call is made at; ``patched`` is changed in place."""
    seen: list[Forward] = []

    def watch(executor, x, timestep, context, clip_fea=None, time_dim_concat=None, transformer_options=None, **kwargs):
        output = executor(x, timestep, context, clip_fea, time_dim_concat, transformer_options, **kwargs)
        window = transformer_options.get("context_window")
        seen.append(
            Forward(
                x.clone(),
                timestep.clone(),
                context.clone(),
                None if window is None else list(window.index_list),
                getattr(window, "causal_anchor_index", None),
                kwargs,
                output.clone(),
            )
        )
        return output

    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, f"watch {id(seen)}", watch)
    return seen


def watch_memory_estimates(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The latent shapes that the host estimates the memory of a run for."""
    shapes: list[list[int]] = []
    estimate = comfy.sampler_helpers.estimate_memory

    def watch(model, noise_shape, conds):
        shapes.append(list(noise_shape))
        return estimate(model, noise_shape, conds)

    monkeypatch.setattr(comfy.sampler_helpers, "estimate_memory", watch)
    return shapes


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()
