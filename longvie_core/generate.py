"""A whole video without ComfyUI: ``python -m longvie_core.generate RUN --backbone ... --vae ... --control ... --clips FOLDER``.

The run is kept on disk as ComfyUI's loop keeps it (:mod:`longvie_core.run`), so that the same command goes on where it stopped.
Under ``torchrun`` all processes sample one clip together; the first alone writes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .autoregress import Carry, HistorySettings, generate
from .clips import TAIL_RULES, ClipPlan
from .control.check import check_controls
from .control.normalize import write_control
from .control.signal import KINDS, Control, Signal, load_clips_folder
from .dual_control import Strengths
from .files import check_space, text_sha256
from .noise import NOISE_MODES, UnifiedNoise
from .prompts import REFERENCE_NEGATIVE, ClipPrompt, ClipStrengths, parse_prompts, prompt_for, texts_for
from .run import ClipKey, Run, clip_parts, clip_range
from .schedule import SHIFT, STEPS, flow_sigmas
from .texts import EmbeddingStore
from .video import stretch

if TYPE_CHECKING:
    from .backends.diffusers import DiffusersBackend

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
class Script:
    """What the video shows.

    Args:
        plan: how it is cut into clips.
        dense, sparse: controls; ``None`` leaves the modality out.
        first_frame: uint8 [height, width, 3].
        prompts: one a clip, the last repeats.
        negative: negative prompt of clips that have none of their own.
    """

    plan: ClipPlan
    dense: Control | None
    sparse: Control | None
    first_frame: np.ndarray
    prompts: tuple[ClipPrompt, ...]
    negative: str = REFERENCE_NEGATIVE

    def texts(self, clip: int) -> tuple[str, str]:
        """Positive and negative text of a clip."""
        return texts_for(self.prompts, self.negative, clip)


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled; the defaults are the reference's."""

    steps: int = STEPS
    shift: float = SHIFT
    cfg: float = 5.0
    strengths: Strengths = Strengths()
    history: HistorySettings = HistorySettings()
    noise: UnifiedNoise = UnifiedNoise()
    dtype: str = "float32"
    device: str = "cpu"


def render(
    folder: Path, models: ModelFiles, script: Script, sampling: Sampling, clips: str = "", report: Callable[[str], None] = print
) -> Path | None:
    """Render a run, or what is missing of it.

    Args:
        folder: of the run; made if it does not exist.
        models, script, sampling: what is rendered. Under ``torchrun`` equal in all processes but for the device.
        clips: which ones, such as ``3-5`` (:func:`longvie_core.run.clip_range`); empty = all.
        report: takes one line at a time.

    Returns:
        The stitched video; ``None`` in all processes but the first.

    Raises:
        FileNotFoundError, ValueError: naming the file, the setting or the clip that is wrong, before anything is sampled.
    """
    wanted = clip_range(clips, script.plan.clips)
    if not is_first_process():
        start, carry = _shared(None)
        _sample(folder, models, script, sampling, range(start, wanted.stop), carry, lambda *_: None)
        return None
    texts = TextStore(folder / "prompts", models.text_encoder)
    with Run(folder).locked() as run:
        keys = [clip_key(models, script, sampling, clip) for clip in range(wanted.stop)]
        resume = run.resume(keys, fixed=wanted.start)
        for line in (*run.notes, *resume.reasons, f"kept {resume.kept} of {wanted.stop} clips"):
            report(line)
        pending = range(resume.kept, wanted.stop)
        missing = texts.missing(text for clip in pending for text in script.texts(clip))
        if pending:
            check_space(folder, run.estimate(script.plan, pending, len(missing)))
        texts.encode(missing, sampling)
        first = Carry(script.first_frame[None], first=True)
        carry = run.carry(pending.start, script.plan) if pending and pending.start else first
        _shared((pending.start, carry))

        def save(result, seconds: float) -> None:
            run.save_clip(result.clip, script.plan, keys[result.clip], result.latents, result.frames, seconds)
            report(f"clip {result.clip + 1} of {script.plan.clips} rendered in {seconds:.1f} s")

        _sample(folder, models, script, sampling, pending, carry, save)
        video = run.assemble(wanted.stop)
        report(f"{run.frames(wanted.stop)} frames in {video}")
        return video


def _sample(folder, models, script, sampling, pending, carry, save) -> None:
    """Generate the pending clips, and hand each result to ``save`` with the seconds it took."""
    if not pending:
        return
    texts = TextStore(folder / "prompts", models.text_encoder)
    backend = load_backend(models, script, sampling, texts)

    def noise(clip: int, shape: tuple[int, ...]) -> Tensor:
        return sampling.noise.for_clip(clip, shape, prompt_for(script.prompts, clip).seed_offset)

    started = time.monotonic()
    for result in generate(script.plan, pending, carry, script.dense, script.sparse, noise, backend, sampling.history):
        save(result, time.monotonic() - started)
        started = time.monotonic()


def load_backend(models: ModelFiles, script: Script, sampling: Sampling, texts: TextStore) -> DiffusersBackend:
    """The networks on their device, shared by all processes where there are several."""
    from .backends import diffusers as backend

    place = {"dtype": DTYPES[sampling.dtype], "device": sampling.device}
    backbone = backend.load_backbone(models.backbone, models.overlay, **place).requires_grad_(False)
    control = backend.load_control(models.control, **place).requires_grad_(False)
    if processes() > 1:
        rows, columns = (size // 2 for size in script.plan.latent_size)
        uneven = rows * columns % processes() or backbone.config.num_attention_heads % processes()
        backend.enable_context_parallel(
            backbone, control, ulysses_degree=processes(), **({"ulysses_anything": True} if uneven else {})
        )
    codec = backend.VaeCodec(backend.load_vae(models.vae, device=sampling.device))
    settings = backend.SamplingSettings(
        flow_sigmas(sampling.steps, sampling.shift), sampling.cfg, sampling.strengths, sampling.history
    )
    vision = None if models.image_encoder is None else backend.ImageEncoder(models.image_encoder, **place)

    def text(clip: int) -> tuple[Tensor, Tensor]:
        positive, negative = (texts.read(words, backbone.config.text_dim) for words in script.texts(clip))
        return positive, negative

    def strengths(clip: int) -> ClipStrengths:
        return prompt_for(script.prompts, clip).strengths

    return backend.DiffusersBackend(backbone, control, codec, settings, text, vision, strengths)


# What a clip is made from


def clip_key(models: ModelFiles, script: Script, sampling: Sampling, clip: int) -> ClipKey:
    """What a clip depends on; each part is named when it changes. Networks count by name, size and time of their files."""
    prompt = prompt_for(script.prompts, clip)
    parts = {
        "sampling": f"{sampling.steps} steps, shift {sampling.shift}, cfg {sampling.cfg}, {sampling.dtype}",
        "strengths": f"{sampling.strengths}",
        "strengths of this clip": f"{prompt.strengths}",
        "history": f"{sampling.history.frames} frames, first frame sigma {sampling.history.first_frame_sigma}",
        "noise": f"seed {sampling.noise.seed}, {sampling.noise.mode}, alpha {sampling.noise.alpha}",
        **{name.replace("_", " "): files_fingerprint(path) for name, path in vars(models).items()},
    }
    common = clip_parts(
        script.plan, clip, script.texts(clip), prompt.seed_offset, script.dense, script.sparse, script.first_frame
    )
    return ClipKey({**common, **parts})


def files_fingerprint(path: Path | None) -> str:
    """Hash of the names, sizes and times of a file, or of all files below a folder."""
    if path is None:
        return "none"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a local file or folder, nothing is downloaded")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return text_sha256(json.dumps(stamps))


class TextStore:
    """Text embeddings on disk, each text encoded once for all runs in this folder.

    Args:
        folder: where.
        encoder: local folder of umT5; ``None`` = no text, whatever the prompts say.
    """

    def __init__(self, folder: Path, encoder: Path | None) -> None:
        self.encoder = encoder
        self._store = EmbeddingStore(folder, files_fingerprint(encoder))

    def missing(self, texts: Iterator[str]) -> list[str]:
        """Those that have to be encoded, each once."""
        return [] if self.encoder is None else self._store.missing(texts)

    def encode(self, texts: list[str], sampling: Sampling) -> None:
        """Encode and keep; the encoder is gone from memory afterwards."""
        if not texts:
            return
        from .backends.diffusers import TextEncoder

        encoder = TextEncoder(self.encoder, dtype=DTYPES[sampling.dtype], device=sampling.device)
        for text in texts:
            self._store.write(text, encoder(text))
        del encoder
        gc.collect()
        if sampling.device != "cpu":
            torch.cuda.empty_cache()

    def read(self, text: str, width: int) -> Tensor:
        """Embedding [1, L, width]; without an encoder one zero token, which attends like any number of them."""
        return torch.zeros(1, 1, width) if self.encoder is None else self._store.read(text)


# Several processes


def processes() -> int:
    """How many processes work on the clip."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first_process() -> bool:
    return processes() == 1 or dist.get_rank() == 0


def _shared(value: tuple[int, Carry] | None) -> tuple[int, Carry]:
    """The first process's value, in all of them."""
    if processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


@contextmanager
def process_group() -> Iterator[str]:
    """Join the other processes of ``torchrun``, if any; gives the device of this one.

    Raises:
        ValueError: several processes without a GPU for each.
    """
    local, world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if world == 1:
        yield "cuda" if gpus else "cpu"
        return
    if local >= gpus:
        raise ValueError(f"{world} processes were started, but this machine has {gpus} GPUs: start one for each GPU")
    torch.cuda.set_device(local)
    dist.init_process_group("nccl")
    try:
        yield f"cuda:{local}"
    finally:
        dist.destroy_process_group()


# Command line


def script_of(options: argparse.Namespace) -> Script:
    """The video that the command line describes.

    Raises:
        FileNotFoundError, ValueError: naming the file or option that is missing or wrong.
    """
    videos = {"--dense": options.dense, "--raw-depth": options.raw_depth, "--sparse": options.sparse}
    given = [name for name, path in videos.items() if path is not None]
    if options.clips is not None and given:
        raise ValueError(f"--clips brings its own controls: leave out {', '.join(given)}, or --clips")
    folder = None if options.clips is None else load_clips_folder(options.clips)
    frames = folder.dense.frames if folder else options.frames
    plan = ClipPlan(
        options.width, options.height, frames, options.fps, options.overlap, options.tail, source_frames=options.source_frames
    )
    if folder:
        dense, sparse = folder.dense, folder.sparse
    else:
        dense = _dense(options, plan)
        sparse = None if options.sparse is None else Control.from_video(options.sparse, "sparse")
    plan = check_controls(plan, dense, sparse)
    first = options.first_frame or (folder.first_frame if folder else None)
    if first is None:
        raise ValueError("no first frame is given: name a picture with --first-frame, or a folder with --clips")
    texts = folder.prompts if folder else [""]
    prompts = parse_prompts(_text_of(options.prompts)) if options.prompts else tuple(ClipPrompt(text) for text in texts)
    return Script(plan, dense, sparse, read_picture(first, plan), prompts, options.negative)


def _dense(options: argparse.Namespace, plan: ClipPlan) -> Control | None:
    """The dense control: a finished video, or raw depth normalised over the whole video (P1) into the run's folder."""
    if options.raw_depth is None:
        return None if options.dense is None else Control.from_video(options.dense, "dense")
    signal = open_signal(options.raw_depth, options.raw_depth_kind, plan.fps)
    made_from = json.dumps([files_fingerprint(options.raw_depth), signal.kind, str(plan)])
    path = options.run / f"dense_{text_sha256(made_from)[:16]}.mkv"
    if is_first_process() and not path.is_file():
        options.run.mkdir(parents=True, exist_ok=True)
        write_control(signal, plan, path)
    if processes() > 1:
        dist.barrier()
    return Control.from_video(path, "dense")


def open_signal(path: Path, kind: str, fps: Fraction) -> Signal:
    """Raw depth from a ``.npy`` of float32 [frames, height, width].

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it holds something else.
    """
    try:
        shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file: {error}") from error
    if len(shape) != 3:
        raise ValueError(f"{path} has the shape {list(shape)}: raw depth is [frames, height, width]")
    return Signal(path, kind, *shape, fps)


def read_picture(path: Path, plan: ClipPlan) -> np.ndarray:
    """A picture file -> uint8 [height, width, 3], stretched as the reference does."""
    try:
        with Image.open(path) as picture:
            return stretch(np.array(picture.convert("RGB")), (plan.width, plan.height))
    except (UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error})") from error


def _fraction(text: str) -> Fraction:
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no rate such as 16 or 24000/1001") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m longvie_core.generate", description="Generate a long video clip by clip, without ComfyUI."
    )
    parser.add_argument("run", type=Path, help="folder that keeps the run; the same one goes on where it stopped")
    add = parser.add_argument_group("networks (local files; nothing is downloaded)").add_argument
    add("--backbone", type=Path, required=True, help="Wan2.1-I2V-14B: original .safetensors, or a diffusers folder")
    add("--vae", type=Path, required=True, help="Wan 2.1 VAE: original .safetensors, or a diffusers folder")
    add("--control", type=Path, required=True, help="LongVie's control.safetensors")
    add("--overlay", type=Path, help="LongVie's dit.safetensors")
    add("--text-encoder", type=Path, help="folder with umt5-xxl and its tokenizer, or a diffusers pipeline; none = no text")
    add("--image-encoder", type=Path, help="folder with CLIP ViT-H, or a diffusers pipeline; for backbones that want it")
    add = parser.add_argument_group("what the video shows").add_argument
    add("--clips", type=Path, help="folder in the authors' layout (cond.json, depth_XX.mp4, track_XX.mp4, first.png)")
    depth = parser.add_mutually_exclusive_group().add_argument
    depth("--dense", type=Path, help="instead: one control video of depth, near = black")
    depth("--raw-depth", type=Path, help="instead: raw depth, .npy of float32 [frames, height, width], normalised here")
    add("--raw-depth-kind", choices=KINDS, default=KINDS[0], help="what its numbers are (%(default)s: larger = nearer)")
    add("--sparse", type=Path, help="one control video of tracks")
    add("--first-frame", type=Path, help="picture that the video starts from, stretched to the size (with --clips: first.png)")
    add("--prompts", type=Path, help="text file: one prompt a line, a line a clip; or a JSON list, also for strengths")
    add("--negative", default=REFERENCE_NEGATIVE, help="negative prompt (Wan's own)")
    add = parser.add_argument_group("clips").add_argument
    add("--width", type=int, default=640)
    add("--height", type=int, default=352)
    add("--frames", type=int, default=81, help="frames a clip, 4n+1 (%(default)s; with --clips as many as its videos have)")
    add("--fps", type=_fraction, default=Fraction(16))
    add("--overlap", type=int, default=1, help="frames that neighbouring clips share (%(default)s)")
    add("--tail", choices=TAIL_RULES, default=TAIL_RULES[0], help="what becomes of frames that fill no whole clip")
    add("--source-frames", type=int, default=0, help="use only so many control frames (0 = all)")
    add("--only", default="", metavar="RANGE", help="clips to render, counted from 1: 3, 3-5, 4- (all)")
    add = parser.add_argument_group("sampling").add_argument
    add("--steps", type=int, default=STEPS)
    add("--shift", type=float, default=SHIFT)
    add("--cfg", type=float, default=5.0, help="guidance scale; 1 = none, at half the time")
    add("--seed", type=int, default=0)
    add("--noise", choices=NOISE_MODES, default=NOISE_MODES[0])
    add("--dense-strength", type=float, default=1.0)
    add("--sparse-strength", type=float, default=1.0)
    add("--history-frames", type=int, default=HistorySettings().frames)
    add("--dtype", choices=DTYPES, help="of the networks (bfloat16 on a GPU, float32 on a CPU); the VAE stays in float32")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    models = ModelFiles(**{name: getattr(options, name) for name in ModelFiles.__dataclass_fields__})
    try:
        with process_group() as device:
            sampling = Sampling(
                steps=options.steps,
                shift=options.shift,
                cfg=options.cfg,
                strengths=Strengths(options.dense_strength, options.sparse_strength),
                history=HistorySettings(options.history_frames),
                noise=UnifiedNoise(options.seed, options.noise),
                dtype=options.dtype or ("float32" if device == "cpu" else "bfloat16"),
                device=device,
            )
            render(options.run, models, script_of(options), sampling, options.only)
    except (ValueError, OSError) as error:
        print(f"generate failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
