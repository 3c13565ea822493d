"""The networks of a run on diffusers' classes, on one GPU or on several processes that sample each clip together."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..disk.cache import ControlCache, cache_limit
from ..disk.fingerprints import text_sha256
from ..finite import finite
from ..model.clip import ModalityRange
from ..model.dual_control import Strengths
from ..model.noise import FIRST_FRAME_SIGMA, UnifiedNoise
from ..model.schedule import SHIFT, STEPS, flow_sigmas
from .control_latents import LatentStore
from .job import Job
from .keys import NetworkParts, parts_of_0_1
from .loop import Carry, generate
from .render import Networks
from .text_embeddings import EmbeddingStore

if TYPE_CHECKING:
    from ..backends.diffusers import DiffusersBackend

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class ModelFiles:
    """Where the networks lie; see the command line's help for each."""

    backbone: Path
    control: Path
    vae: Path
    overlay: Path | None = None
    text_encoder: Path | None = None
    image_encoder: Path | None = None


@dataclass(frozen=True)
class Sampling:
    """How a clip is sampled; the defaults are the reference's."""

    steps: int = STEPS
    shift: float = SHIFT
    cfg: float = 5.0
    strengths: Strengths = field(default_factory=Strengths)
    first_frame_sigma: float = FIRST_FRAME_SIGMA
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        finite(shift=self.shift, cfg=self.cfg, first_frame_sigma=self.first_frame_sigma)


def files_fingerprint(path: Path | None) -> str:
    """Hash of the names, sizes and times of a file, or of all files below a folder.

    Raises:
        FileNotFoundError: it does not exist.
    """
    if path is None:
        return "none"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a local file or folder, nothing is downloaded")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return text_sha256(json.dumps(stamps))


class EncodedTexts:
    """Prompts encoded by umT5 of a local folder, each once for all runs in this folder.

    Args:
        folder: where they are kept.
        encoder: local folder of umT5; ``None`` = no text, whatever the prompts say.
        sampling: dtype and device.
    """

    def __init__(self, folder: Path, encoder: Path | None, sampling: Sampling) -> None:
        self.encoder = encoder
        self.sampling = sampling
        self._store = EmbeddingStore(folder, files_fingerprint(encoder))

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those that have to be encoded, each once."""
        return [] if self.encoder is None else self._store.missing(texts)

    def encode(self, texts: Sequence[str]) -> None:
        """Encode and keep; the encoder is gone from memory afterwards."""
        if not texts or self.encoder is None:
            return
        from ..backends.diffusers import TextEncoder

        encoder = TextEncoder(self.encoder, dtype=DTYPES[self.sampling.dtype], device=self.sampling.device)
        for text in texts:
            self._store.write(text, encoder(text))
        del encoder
        gc.collect()
        if self.sampling.device != "cpu":
            torch.cuda.empty_cache()

    def read(self, text: str) -> Tensor | None:
        """Embedding [1, L, width]; ``None`` without an encoder."""
        return None if self.encoder is None else self._store.read(text)


class DiffusersNetworks(Networks):
    """Networks from local files on diffusers' classes.

    Args:
        files: where they lie.
        sampling: how they sample; equal in all processes but for the device.
        cache: folder that keeps encoded controls from run to run.
    """

    def __init__(self, files: ModelFiles, sampling: Sampling, cache: Path) -> None:
        self.files = files
        self.sampling = sampling
        self.cache = cache

    @cached_property
    def parts(self) -> NetworkParts:
        """Networks count by name, size and time of their files.

        Raises:
            FileNotFoundError: one of them does not exist.
        """
        stamps = {name: files_fingerprint(path) for name, path in vars(self.files).items()}
        networks = {
            "model": f"{stamps['backbone']} overlay {stamps['overlay']} {self.sampling.dtype}",
            "control network": stamps["control"],
            "vae": stamps["vae"],
            "image encoder": stamps["image_encoder"],
            "method": "euler",
        }
        sigmas = flow_sigmas(self.sampling.steps, self.sampling.shift)
        dense, sparse = ModalityRange(self.sampling.strengths.dense), ModalityRange(self.sampling.strengths.sparse)
        return NetworkParts(networks, stamps["text_encoder"], tuple(sigmas.tolist()), self.sampling.cfg, dense, sparse)

    def former_parts(self, job: Job, clip: int) -> Mapping[str, str]:
        """See :class:`longvie_core.run.render.Networks`."""
        sampling, history = self.sampling, job.loop.history
        noise = job.loop.noise
        own = job.script.prompts.of(clip).strengths
        return {
            **parts_of_0_1(job, clip),
            "sampling": f"{sampling.steps} steps, shift {sampling.shift}, cfg {sampling.cfg}, {sampling.dtype}",
            "strengths": f"{sampling.strengths}",
            "strengths of this clip": f"{own}",
            "history": f"{history.frames} frames, first frame sigma {history.first_frame_sigma}",
            **({"noise": f"seed {noise.seed}, {noise.mode}, alpha {noise.alpha}"} if isinstance(noise, UnifiedNoise) else {}),
            **{name.replace("_", " "): files_fingerprint(path) for name, path in vars(self.files).items()},
        }

    def texts(self, folder: Path) -> EncodedTexts:
        """See :class:`longvie_core.run.render.Networks`."""
        return EncodedTexts(folder, self.files.text_encoder, self.sampling)

    def store(self) -> LatentStore:
        """Encoded controls, as long as the VAE and what it runs on stay the same."""
        encoder = f"{files_fingerprint(self.files.vae)} {self.sampling.device} diffusers {torch.__version__}"
        return LatentStore(ControlCache(self.cache, cache_limit()), encoder)

    def open(self, job: Job, clips: range) -> DiffusersBackend:
        """The networks on their device, shared by all processes where there are several."""
        from ..backends import diffusers as backend

        files, sampling = self.files, self.sampling
        place = {"dtype": DTYPES[sampling.dtype], "device": sampling.device}
        backbone = backend.load_backbone(files.backbone, files.overlay, **place).requires_grad_(False)
        control = backend.load_control(files.control, **place).requires_grad_(False)
        if processes() > 1:
            rows, columns = (size // 2 for size in job.script.plan.latent_size)
            uneven = rows * columns % processes() or backbone.config.num_attention_heads % processes()
            backend.enable_context_parallel(
                backbone, control, ulysses_degree=processes(), **({"ulysses_anything": True} if uneven else {})
            )
        codec = backend.VaeCodec(backend.load_vae(files.vae, device=sampling.device))
        settings = backend.SamplingSettings(
            flow_sigmas(sampling.steps, sampling.shift), sampling.cfg, sampling.strengths, sampling.first_frame_sigma
        )
        vision = None if files.image_encoder is None else backend.ImageEncoder(files.image_encoder, **place)
        return backend.DiffusersBackend(backbone, control, codec, settings, vision)

    def announce(self, pending: range, carry: Carry) -> None:
        """Tell the other processes where sampling begins."""
        if processes() > 1:
            _broadcast((pending, carry))


def sample_along(folder: Path, job: Job, networks: DiffusersNetworks) -> None:
    """Sample the clips of a run together with the first process, which alone renders it (:func:`render`) and writes."""
    pending, carry = _broadcast()
    if not pending:
        return
    backend = networks.open(job, pending)
    for _ in generate(job.script, pending, carry, backend, job.loop, networks.texts(folder / "prompts").read):
        pass


def processes() -> int:
    """How many processes work on the clip."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    """Whether this is the process that writes."""
    return processes() == 1 or dist.get_rank() == 0


def _broadcast(value: tuple[range, Carry] | None = None) -> tuple[range, Carry]:
    """The first process's value, in all of them; the others give none."""
    box: list[Any] = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]
