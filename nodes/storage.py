"""Where the pack reads and writes inside the host's folders, and what names the things that have no file."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from math import ceil
from pathlib import Path

import folder_paths
import numpy as np
import torch
from comfy_api.latest import Input, InputImpl

from ..longvie_core.disk.fingerprints import file_stamp
from ..longvie_core.disk.tensors import claims_tensors, read_tensors, write_tensors
from ..longvie_core.interrupt import checkpoint
from ..longvie_core.media.footage import Footage
from ..longvie_core.media.probe import probe
from ..longvie_core.media.read import read_frames, stretch
from ..longvie_core.media.sound import SAMPLE_BYTES, cut_sound, has_sound, write_wave
from ..longvie_core.media.write import VideoWriter
from ..longvie_core.plan import ClipPlan
from ..longvie_core.run.loop import Carry
from ..longvie_core.run.names import check_run_name
from ..longvie_core.run.store import Run
from .cache import cached, cached_tail, is_intact, making, tail_cache

MAX_FOLDER_NAME = 255
AUDIO_BLOCK = 1 << 20
"""Samples of a channel that are converted at a time."""
PIXEL_BYTES = 3
"""As many as a lossless pixel takes at most, and noise alone takes."""
SOUND_BYTES = 8 * 48_000 * SAMPLE_BYTES
"""A second of sound in eight channels."""
HASH_BLOCK = 1 << 24
"""Bytes of a tensor that are hashed at a time."""


def input_folder(name: str) -> Path:
    """A folder inside ComfyUI's input folder.

    Raises:
        ValueError: it is not there, or it leads outside (absolute path, ``..``, link).
    """
    folder = _inside_input(name, "folder", "copy the clips into a folder there")
    if not folder.is_dir():
        raise ValueError(f"folder {name!r} does not exist in ComfyUI's input folder: copy the clips there")
    return folder


def input_file(name: str) -> Path:
    """A file inside ComfyUI's input folder.

    Raises:
        ValueError: it is not there, or it leads outside (absolute path, ``..``, link).
    """
    file = _inside_input(name, "file", "copy it there")
    if not file.is_file():
        raise ValueError(f"file {name!r} does not exist in ComfyUI's input folder: copy it there")
    return file


def _inside_input(name: str, what: str, mend: str) -> Path:
    root = Path(folder_paths.get_input_directory()).resolve()
    if "\0" in name or len(name) > MAX_FOLDER_NAME:
        raise ValueError(f"{what} {name[:MAX_FOLDER_NAME]!r} is no file name: choose a {what} inside ComfyUI's input folder")
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root) or path == root:
        raise ValueError(f"{what} {name!r} is not inside ComfyUI's input folder: {mend}")
    return path


def clip_folders() -> list[str]:
    """Folders in the input folder that hold a ``cond.json``."""
    root = Path(folder_paths.get_input_directory())
    return sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/cond.json"))


def run_folder(name: str) -> Path:
    """Where a run of this name lies, whether it is there or not.

    Raises:
        ValueError: the name is no plain folder name.
    """
    return Path(folder_paths.get_output_directory()).resolve() / "longvie" / check_run_name(name)


def open_run(name: str) -> Run:
    """The run ``<output>/longvie/<name>``.

    Raises:
        ValueError: the name is no plain folder name, or the folder is a link that leads elsewhere.
    """
    folder = run_folder(name)
    if folder.resolve() != folder:
        raise ValueError(
            f"run {name!r} is a link or lies behind one: use another run name, or, to keep runs on another disk, start ComfyUI "
            "with --output-directory"
        )
    return Run(folder)


def footage(video: Input.Video | None, images: torch.Tensor | None, plan: ClipPlan, fit: str) -> Footage:
    """The driving video at the plan's rate and size, from a VIDEO or from an IMAGE batch at the plan's rate.

    Raises:
        ValueError: neither or both are connected.
    """
    if (video is None) == (images is None):
        raise ValueError("connect the driving video to exactly one of video or images, not both and not neither")
    path = image_file(images, plan.fps) if video is None else video_file(video)
    return Footage.open(path, plan.fps, plan.width, plan.height, fit)


def tensor_sha256(tensor: torch.Tensor) -> str:
    """Hash of a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype}{list(tensor.shape)}".encode())
    for block in tensor.detach().cpu().contiguous().flatten().view(torch.uint8).split(HASH_BLOCK):
        checkpoint()
        digest.update(block.numpy())
    return digest.hexdigest()


def to_frame(image: torch.Tensor, plan: ClipPlan) -> np.ndarray:
    """First picture of an IMAGE [B, H, W, C] -> uint8 [height, width, 3], stretched as the reference does.

    Raises:
        ValueError: the batch is empty.
    """
    if not len(image):
        raise ValueError("the first frame's IMAGE holds no picture: load one, or take an earlier or longer part of the video")
    return stretch(to_uint8(image[0]), (plan.width, plan.height))


def to_frames(images: torch.Tensor, plan: ClipPlan) -> np.ndarray:
    """IMAGE [B, H, W, C] -> uint8 frames [B, height, width, 3]."""
    return np.stack([to_frame(image[None], plan) for image in images])


def to_image(frames: np.ndarray) -> torch.Tensor:
    """uint8 frames [T, H, W, 3] -> IMAGE [T, H, W, 3] in 0 .. 1."""
    return torch.from_numpy(np.require(frames, requirements=["C", "W"])).float().div_(255)


def image_file(images: torch.Tensor, fps: Fraction = Fraction(16)) -> Path:
    """A lossless video of an IMAGE batch in the cache, named by its content."""
    path = cached("images", tensor_sha256(images), fps)
    if not is_intact(path):
        count, height, width = images.shape[:3]
        needed = count * height * width * PIXEL_BYTES
        with making(path, needed), VideoWriter(path, width, height, fps, codec="lossless") as writer:
            for index in range(count):
                writer.write(to_uint8(images[index]))
    return path


def source_file(video: Input.Video) -> Path | None:
    """The file that a VIDEO, trimmed or not, was opened from; ``None`` where it has none."""
    source = video.get_stream_source() if isinstance(video, InputImpl.VideoFromFile) else None
    return Path(source) if isinstance(source, str) else None


def video_file(video: Input.Video) -> Path:
    """The file behind a VIDEO; one without a file of its own, or trimmed, is written to the cache first.

    Raises:
        ValueError: the video has no frames.
    """
    path = source_file(video)
    if path is None:
        components = video.get_components()
        return image_file(components.images, Fraction(components.frame_rate))
    window = video.get_active_trim_window()
    return path if window == (0.0, 0.0) else trimmed_file(path, *window)


def trimmed_frames(path: Path, start: float, duration: float) -> range:
    """Frames of a video that the host trims it to, from ``start`` on for ``duration`` seconds; 0 = to the end.

    Raises:
        ValueError: there are none.
    """
    info = probe(path)
    # As the host trims: frames from `start` on, those at the end of the window excluded.
    first = ceil(Fraction(start).limit_denominator(10**6) * info.fps)
    stop = ceil(Fraction(start + duration).limit_denominator(10**6) * info.fps) if duration else info.frames
    frames = range(min(first, info.frames), min(stop, info.frames))
    if not frames:
        raise ValueError(f"{path} has {info.frames} frames, of which the trimmed part has none: trim it less")
    return frames


def trimmed_file(path: Path, start: float, duration: float) -> Path:
    """A lossless copy of a part of a video, in the cache; streamed, whatever its length. Duration 0 = to the end."""
    info, frames = probe(path), trimmed_frames(path, start, duration)
    destination = cached("trimmed", path, file_stamp(path), frames)
    if not is_intact(destination):
        needed = len(frames) * info.height * info.width * PIXEL_BYTES
        with (
            making(destination, needed),
            VideoWriter(destination, info.width, info.height, info.fps, codec="lossless") as writer,
        ):
            for frame in read_frames(path, frames):
                writer.write(frame)
    return destination


def audio_file(video: Input.Video | None, audio: dict | None) -> Path | None:
    """A file with the sound for a finished video: of the AUDIO given, else of the driving VIDEO; ``None`` = there is none.

    A VIDEO stands for its own file, so that its sound is copied and not encoded again. The sound of the part that a trimmed one
    is trimmed to, and samples from memory, are written to the cache first.

    Raises:
        ValueError: the sound is damaged, or nothing is left of the trimmed video.
    """
    if audio is not None:
        return samples_file(audio)
    if video is None:
        return None
    path = source_file(video)
    if path is None:
        audio = video.get_components().audio
        return None if audio is None else samples_file(audio)
    if not has_sound(path):
        return None
    window = video.get_active_trim_window()
    if window == (0.0, 0.0):
        return path
    frames = trimmed_frames(path, *window)
    destination = cached("sound", path, file_stamp(path), frames, suffix=".wav")
    if not is_intact(destination):
        with making(destination, ceil(len(frames) / probe(path).fps) * SOUND_BYTES):
            cut_sound(path, frames, destination)
    return destination if has_sound(destination) else None


def samples_file(audio: dict) -> Path | None:
    """A WAV file of the host's AUDIO in the cache, named by its content; ``None`` where it has no samples."""
    samples, rate = audio["waveform"][0], int(audio["sample_rate"])
    if not samples.shape[-1]:
        return None
    path = cached("sound", tensor_sha256(samples), rate, suffix=".wav")
    if not is_intact(path):
        blocks = samples.split(AUDIO_BLOCK, dim=-1)
        with making(path, samples.numel() * SAMPLE_BYTES):
            write_wave(path, rate, len(samples), (to_int16(block) for block in blocks))
    return path


def to_int16(samples: torch.Tensor) -> np.ndarray:
    """Samples [C, n] in -1 .. 1 -> int16 [n, C]; what is louder is cut off."""
    return (samples.float().cpu().nan_to_num(0).clamp(-1, 1) * 32767).round().to(torch.int16).numpy().T


def to_uint8(image: torch.Tensor) -> np.ndarray:
    """One picture [H, W, C] in 0 .. 1 -> uint8 [H, W, 3]; an 8-bit picture comes back exactly.

    Raises:
        ValueError: it has values that are not finite.
    """
    image = image[..., :3].cpu()
    broken = image.numel() - int(image.isfinite().sum())
    if broken:
        raise ValueError(
            f"a picture of an IMAGE has {broken} of {image.numel()} values that are not finite: what made it is broken, give "
            "another one"
        )
    return np.ascontiguousarray((image.clamp(0, 1) * 255).round().to(torch.uint8).numpy())


def keep_tail(carry: Carry) -> Path:
    """Keep what the next clip needs; equal tails are one file."""
    tensors = {"tail": torch.from_numpy(carry.frames)}
    if carry.anchor_statistics is not None:
        tensors["anchor_statistics"] = torch.from_numpy(carry.anchor_statistics)
    path = cached_tail(*((name, tensor_sha256(tensor)) for name, tensor in tensors.items()))
    if not claims_tensors(path):
        write_tensors(path, tensors)
        tail_cache().trim()
    return path


def read_tail(path: Path) -> Carry:
    """Read back :func:`keep_tail`.

    Raises:
        ValueError: the file is gone (ComfyUI clears its temp folder when it starts) or damaged.
    """
    tensors = read_tensors(path)
    if tensors is None:
        raise ValueError("the previous clip's frames are gone from ComfyUI's temp folder: queue the first clip again")
    statistics = tensors["anchor_statistics"].numpy() if "anchor_statistics" in tensors else None
    return Carry(tensors["tail"].numpy(), first=False, anchor_statistics=statistics)
