"""The host's objects as the networks of a run: model, VAE, text encoder, noise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import comfy.samplers
import torch

from ..longvie_core.backends import comfy as backend
from ..longvie_core.model.clip import HistorySettings, ModalityRange
from ..longvie_core.model.noise import UnifiedNoise
from ..longvie_core.run.colour_anchor import AnchorSettings
from ..longvie_core.run.control_latents import LatentStore
from ..longvie_core.run.job import Job, LoopSettings, NoiseSource
from ..longvie_core.run.keys import NetworkParts, parts_of_0_1
from ..longvie_core.run.loop import Carry
from ..longvie_core.run.prompts import ClipStrengths, PromptSchedule
from ..longvie_core.run.render import Networks
from ..longvie_core.run.text_embeddings import EmbeddingStore
from . import storage
from .cache import control_cache
from .contents import GraphFingerprint


@dataclass(frozen=True)
class SamplerPayload:
    """Payload of LONGVIE_SAMPLER.

    Args:
        sampler: what samples a clip.
        dense, sparse: strengths and ranges that its MODEL was patched with.
        history, anchor: how one clip follows from another.
        networks: fingerprints, by content, of the graph behind each input, under the names of
            :class:`longvie_core.run.keys.NetworkParts`.
        fingerprint: of the whole graph that made it, which is what LongVie 0.1 knew clips by.
        node: id of the node that made it, where the running clip is previewed.
    """

    sampler: backend.MultimodalSampler
    dense: ModalityRange
    sparse: ModalityRange
    history: HistorySettings
    anchor: AnchorSettings
    networks: Mapping[str, str]
    fingerprint: str
    node: str


@dataclass(frozen=True)
class PromptsPayload(PromptSchedule):
    """Payload of LONGVIE_PROMPTS: the prompts of a video, and what encodes them.

    Args:
        clip: the host's text encoder, or ``None`` = no text.
        encoder: fingerprint of the graph behind the text encoder.
    """

    clip: object | None = None
    encoder: GraphFingerprint = GraphFingerprint("", "")


class EncodedTexts:
    """Prompts as CONDITIONING, encoded by the host's CLIP.

    Args:
        prompts: with their encoder.
        model: the MODEL that reads them.
        folder: keeps them from run to run; ``None`` = memory.
    """

    def __init__(self, prompts: PromptsPayload, model: object, folder: Path | None) -> None:
        self.clip = prompts.clip
        self.model = model
        self._store = None if folder is None else EmbeddingStore(folder, prompts.encoder.content)
        self._memory: dict[str, backend.Conditioning] = {}

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those that have to be encoded, each once."""
        if self.clip is None:
            return []
        return list(dict.fromkeys(texts)) if self._store is None else self._store.missing(texts)

    def encode(self, texts: Sequence[str]) -> None:
        """Encode and keep."""
        for text in texts:
            conditioning = backend.encode_text(self.clip, text)
            if self._store is None:
                self._memory[text] = conditioning
            else:
                ((embedding, _),) = conditioning
                self._store.write(text, embedding)

    def read(self, text: str) -> backend.Conditioning:
        """CONDITIONING of a text, encoded again where its file is damaged; without an encoder that of no text."""
        if self.clip is None:
            return backend.empty_text(self.model)
        if self._store is None:
            return self._memory[text]
        embedding = self._store.read(text)
        if embedding is None:
            self.encode([text])
            embedding = self._store.read(text)
        return [[embedding, {}]]


@dataclass(frozen=True)
class HostNoise:
    """Any NOISE of the host as LongVie's: it starts every clip alike.

    Args:
        noise: the host's object.
        description: fingerprint of the graph that made it.
    """

    noise: object
    description: str

    @property
    def seed(self) -> int:
        return self.noise.seed

    def for_clip(self, clip: int, shape: tuple[int, ...], seed_offset: int = 0) -> torch.Tensor:
        """See :class:`longvie_core.run.job.NoiseSource`; clip and offset change nothing."""
        return self.noise.generate_noise({"samples": torch.zeros(shape)})


class ComfyNetworks(Networks):
    """The host's objects behind a loop.

    Args:
        sampler, prompts: payloads.
        noise_fingerprint: of the graph behind the noise.

    Raises:
        ValueError: the limit of the cache in the environment is no size.
    """

    def __init__(self, sampler: SamplerPayload, prompts: PromptsPayload, noise_fingerprint: GraphFingerprint) -> None:
        control_cache()
        self.sampler = sampler
        self.prompts = prompts
        self.noise_fingerprint = noise_fingerprint

    @cached_property
    def parts(self) -> NetworkParts:
        """See :class:`longvie_core.run.render.Networks`."""
        sampler = self.sampler.sampler
        text_encoder = self.prompts.encoder.content if self.prompts.clip else "none"
        sigmas = tuple(sampler.sigmas.float().tolist())
        return NetworkParts(self.sampler.networks, text_encoder, sigmas, sampler.cfg, self.sampler.dense, self.sampler.sparse)

    def former_parts(self, job: Job, clip: int) -> Mapping[str, str]:
        """See :class:`longvie_core.run.render.Networks`."""
        return {
            **parts_of_0_1(job, clip),
            "sampler": self.sampler.fingerprint,
            "text encoder": self.prompts.encoder.former,
            "noise": self.noise_fingerprint.former,
            **_own_strengths(job.script.prompts.of(clip).strengths),
        }

    def texts(self, folder: Path | None) -> EncodedTexts:
        """The encoded prompts in this folder; ``None`` = in memory."""
        return EncodedTexts(self.prompts, self.sampler.sampler.model, folder)

    def open(self, job: Job, clips: Sequence[int]) -> backend.ComfyBackend:
        """The host loads its models itself, when they are used."""
        return open_backend(self.sampler, clips)

    def store(self) -> LatentStore:
        """Encoded controls in the pack's cache."""
        return latent_store(self.sampler.sampler)

    def announce(self, pending: range, carry: Carry) -> None:
        """Nothing samples along in ComfyUI."""


def open_backend(sampler: SamplerPayload, clips: Sequence[int]) -> backend.ComfyBackend:
    """What samples these clips, its progress shown on the running node."""
    return backend.ComfyBackend(sampler.sampler, backend.progress_over_clips(sampler.sampler, clips, sampler.node))


def latent_store(sampler: backend.MultimodalSampler) -> LatentStore:
    """Encoded controls in the pack's cache, as this sampler's VAE encodes them."""
    return LatentStore(control_cache(), encoder_fingerprint(sampler))


def loop_settings(sampler: SamplerPayload, noise: object, noise_fingerprint: GraphFingerprint) -> LoopSettings:
    """How one clip follows from another, with the host's NOISE or LongVie's."""
    source: NoiseSource = noise if isinstance(noise, UnifiedNoise) else HostNoise(noise, noise_fingerprint.content)
    return LoopSettings(source, sampler.history, sampler.anchor)


def host_sampler_text(sampler: comfy.samplers.Sampler, fingerprint: str) -> str:
    """Name of a plain k-diffusion sampler without options, such as ``euler``; of any other the graph that made it."""
    function = getattr(sampler, "sampler_function", None)
    plain = type(sampler) is comfy.samplers.KSAMPLER and not sampler.extra_options and not sampler.inpaint_options
    name = getattr(function, "__name__", "")
    return name.removeprefix("sample_") if plain and name.startswith("sample_") else fingerprint


def _own_strengths(strengths: ClipStrengths) -> dict[str, str]:
    return {f"{modality} strength": str(value) for modality, value in vars(strengths).items() if value is not None}


weights_sha256: WeakKeyDictionary[object, str] = WeakKeyDictionary()
"""Hash of the weights of each VAE that is in use."""


def encoder_fingerprint(sampler: backend.MultimodalSampler) -> str:
    """Text that differs where the same pictures could be encoded to other latents: the VAE's weights and how it computes.

    The weights themselves count, not the nodes that gave them: the host keeps a VAE in memory whatever happens to its file.
    """
    vae = sampler.vae
    vae.throw_exception_if_invalid()
    if vae not in weights_sha256:
        digest = hashlib.sha256()
        for name, value in sorted(vae.get_sd().items()):
            digest.update(f"{name} {storage.tensor_sha256(value)}\n".encode())
        weights_sha256[vae] = digest.hexdigest()
    latent_format = type(sampler.model.get_model_object("latent_format")).__name__
    how = (latent_format, vae.device, vae.vae_dtype, vae.vae_output_dtype(), torch.__version__)
    return " ".join([weights_sha256[vae], *map(str, how)])
