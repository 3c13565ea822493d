"""The networks of a run on diffusers' classes, on one GPU or on several processes that sample each clip together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..backends.processes import DTYPES
from ..disk.cache import ControlCache, cache_limit
from ..disk.contents import ContentMemory, content_fingerprint
from ..disk.fingerprints import files_fingerprint
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
from .text_store import TextStore

if TYPE_CHECKING:
    from ..backends.diffusers import DiffusersBackend


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


class DiffusersNetworks(Networks):
    """Networks from local files on diffusers' classes.

    Args:
        files: where they lie.
        sampling: how they sample; equal in all processes but for the device.
        cache: folder that keeps encoded controls from run to run; what the networks' files hold is remembered beside it.

    Raises:
        ValueError: the limit of the cache in the environment is no size.
    """

    def __init__(self, files: ModelFiles, sampling: Sampling, cache: Path) -> None:
        self.files = files
        self.sampling = sampling
        self.cache = cache
        self._cache_limit = cache_limit()
        self._memory = ContentMemory(cache.with_name("contents.json"))

    @cached_property
    def contents(self) -> Mapping[str, str]:
        """What each network's files hold, ``"none"`` where there is none: their bytes count, and in folders their names.

        All of them are read, once: 33 GB in the first run from a folder; afterwards only their sizes and times.

        Raises:
            FileNotFoundError: one of them does not exist.
            ValueError: one of them is being written.
        """
        files: Mapping[str, Path | None] = vars(self.files)
        return {name: "none" if path is None else content_fingerprint(path, self._memory) for name, path in files.items()}

    @cached_property
    def parts(self) -> NetworkParts:
        """Networks count by what their files hold.

        Raises:
            FileNotFoundError, ValueError: as :attr:`contents`.
        """
        contents = self.contents
        networks = {
            "model": f"{contents['backbone']} overlay {contents['overlay']} {self.sampling.dtype}",
            "control network": contents["control"],
            "vae": contents["vae"],
            "image encoder": contents["image_encoder"],
            "method": "euler",
        }
        sigmas = flow_sigmas(self.sampling.steps, self.sampling.shift)
        dense, sparse = ModalityRange(self.sampling.strengths.dense), ModalityRange(self.sampling.strengths.sparse)
        return NetworkParts(networks, contents["text_encoder"], tuple(sigmas.tolist()), self.sampling.cfg, dense, sparse)

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

    def texts(self, folder: Path) -> TextStore:
        """See :class:`longvie_core.run.render.Networks`."""
        encoder = f"{self.contents['text_encoder']} {self.sampling.dtype}"
        return TextStore(folder, self.files.text_encoder, DTYPES[self.sampling.dtype], self.sampling.device, encoder)

    def store(self) -> LatentStore:
        """Encoded controls, as long as the VAE and what it runs on stay the same."""
        encoder = f"{self.contents['vae']} {self.sampling.device} diffusers {torch.__version__}"
        return LatentStore(ControlCache(self.cache, self._cache_limit), encoder)

    def open(self, job: Job, clips: Sequence[int]) -> DiffusersBackend:
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
    backend, texts = None, networks.texts(folder / "prompts")
    while True:
        clips, carry = _broadcast()
        if not clips:
            return
        backend = backend or networks.open(job, clips)
        for _ in generate(job.script, clips, carry, backend, job.loop, texts.read):
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
