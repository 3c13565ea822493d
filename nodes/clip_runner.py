"""The host's objects that a clip needs, by clip number: text, noise, seed, control latents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from ..longvie_core.backends import comfy as backend
from ..longvie_core.control.control import Control
from ..longvie_core.model.noise import UnifiedNoise
from ..longvie_core.plan import ClipPlan
from ..longvie_core.run.control_latents import LatentStore
from ..longvie_core.run.loop import Carry, ClipResult, TimedBackend, generate
from ..longvie_core.run.text_embeddings import EmbeddingStore
from . import storage
from .prompts import PromptSchedule


@dataclass(frozen=True)
class NamedSampler:
    """Payload of LONGVIE_SAMPLER.

    Args:
        sampler: what samples.
        fingerprint: of the graph that made it.
        node: id of the node that made it, where the running clip is previewed.
    """

    sampler: backend.MultimodalSampler
    fingerprint: str
    node: str


class ClipRunner:
    """Sampler, prompts and noise of a range of clips.

    Args:
        sampler: what samples.
        prompts: texts and their encoder.
        noise: LongVie's, or any NOISE of the host, which then starts every clip alike.
        clips: the clips that will be rendered.
        embeddings: folder that keeps text embeddings from run to run; ``None`` = memory.
    """

    def __init__(
        self,
        sampler: NamedSampler,
        prompts: PromptSchedule,
        noise: object,
        clips: Sequence[int],
        embeddings: Path | None = None,
    ) -> None:
        self.sampler = sampler.sampler
        self.prompts = prompts
        self.noise = noise
        self.clips = clips
        self.texts = None if embeddings is None else EmbeddingStore(embeddings, prompts.encoder)
        self.memory: dict[str, backend.Conditioning] = {}
        progress = backend.progress_over_clips(self.sampler, clips, sampler.node)
        self.backend = TimedBackend(backend.ComfyBackend(self.sampler, self.text_of, self.seed_of, progress, prompts.strengths))
        self.store = LatentStore(storage.control_cache(), encoder_fingerprint(self.sampler))
        # All texts before the first clip, so that text encoder and video model are not loaded in turn.
        for text in dict.fromkeys(text for clip in clips for text in prompts.texts(clip)):
            self._encode(text)

    def generate(self, plan: ClipPlan, carry: Carry, dense: Control | None, sparse: Control | None) -> Iterator[ClipResult]:
        """Render the clips one after another, the first of them after ``carry``."""
        with self.store:
            yield from generate(
                plan,
                self.clips,
                carry,
                dense,
                sparse,
                self.noise_of,
                self.backend,
                self.sampler.history,
                self.store,
                self.sampler.anchor,
            )

    def report(self, seconds: float) -> list[str]:
        """What became of the control latents, and how much of the time that the whole run took the model had."""
        share = self.backend.seconds / seconds
        return [*self.store.report, f"{share:.1%} of {seconds:.1f} s was sampler and VAE"]

    def text_of(self, clip: int) -> tuple[backend.Conditioning, backend.Conditioning]:
        """Positive and negative CONDITIONING of a clip."""
        positive, negative = (self._read(text) for text in self.prompts.texts(clip))
        return positive, negative

    def noise_of(self, clip: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Initial noise of a clip."""
        offset = self.prompts.seed_offset(clip)
        if isinstance(self.noise, UnifiedNoise):
            return self.noise.for_clip(clip, shape, offset)
        return self.noise.generate_noise({"samples": torch.zeros(shape)})

    def seed_of(self, clip: int) -> int:
        """Seed of stochastic samplers: the first clip's is the noise seed, as the host's KSampler has it."""
        return (self.noise.seed + self.prompts.seed_offset(clip) + clip) % 2**64

    def _encode(self, text: str) -> None:
        if self.prompts.clip is None:
            return
        if self.texts is None:
            self.memory[text] = backend.encode_text(self.prompts.clip, text)
        elif self.texts.missing([text]):
            ((embedding, _),) = backend.encode_text(self.prompts.clip, text)
            self.texts.write(text, embedding)

    def _read(self, text: str) -> backend.Conditioning:
        if self.prompts.clip is None:
            return backend.empty_text(self.sampler.model)
        if self.texts is None:
            return self.memory[text]
        return [[self.texts.read(text), {}]]


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
