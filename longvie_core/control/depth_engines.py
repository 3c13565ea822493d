"""Where raw depth comes from: networks in local files, and depth that the user already has. Nothing is ever downloaded.

Every engine states its kind, and gives its network's own output: the pictures that depth tools make of it are normalised one by
one, which P1 shows to be the thing to avoid.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from ..video import _index, _numbered, read_frames
from .signal import KINDS, Signal

DTYPES = ("float32", "float16", "bfloat16")

# --- networks ---------------------------------------------------------------------------------------------------------


def published_kind(config: dict[str, Any]) -> str | None:
    """The kind of ``predicted_depth`` of a ``transformers`` depth checkpoint, by its ``config.json``; None = not known.

    * Depth Anything V1 and V2: inverse depth, unless the configuration says ``metric`` (V2 Metric, indoor and outdoor).
    * DPT and MiDaS: inverse depth; DPT on a DINOv2 backbone (published for NYU and KITTI): metres.
    * ZoeDepth, GLPN: metres.
    * DepthPro: its ``predicted_depth`` is *inverse* depth, for a field of view of its own in every picture; only its
      post-processing makes metres of it.
    """
    backbone = (config.get("backbone_config") or {}).get("model_type")
    match config.get("model_type"):
        case "depth_anything":
            return "depth" if config.get("depth_estimation_type") == "metric" else "disparity"
        case "dpt":
            return "depth" if backbone == "dinov2" else "disparity"
        case "depth_pro":
            return "disparity"
        case "zoedepth" | "glpn":
            return "depth"
    return None


class TransformersDepth:
    """A depth-estimation checkpoint of ``transformers``: its raw ``predicted_depth``, bilinearly resized to the frame.

    Args:
        folder: local folder with ``config.json``, ``preprocessor_config.json`` and ``model.safetensors`` (or its parts with
            ``model.safetensors.index.json``).
        kind: what the network's output is; by default as :func:`published_kind` knows it.
        device, dtype: where and in what precision it runs (``"float32"``, ``"float16"``, ``"bfloat16"``).

    Raises:
        FileNotFoundError: a file is missing, which, and where it belongs.
        ValueError: not a depth checkpoint, of unknown kind, or with weights that do not fit.
    """

    window, overlap = 1, 0

    def __init__(self, folder: Path, *, kind: str | None = None, device: str = "cpu", dtype: str = "float32") -> None:
        config = _checkpoint_config(folder)
        self.name = f"{config['model_type']} ({folder.name})"
        self.kind = _known_kind(kind or published_kind(config), f"{folder} ({config['model_type']})")
        self._device, self._dtype = device, _torch_dtype(dtype)
        self._pads = config["model_type"] == "zoedepth"
        self._processor, self._network = self._load(folder)

    def _load(self, folder: Path) -> tuple[Any, torch.nn.Module]:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation, __version__

        dtype = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (4, 56) else "torch_dtype"  # its older name
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        # Weights of another shape are let through here and refused below, by name.
        report: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            processor = AutoImageProcessor.from_pretrained(str(folder), **local)
            network, info = AutoModelForDepthEstimation.from_pretrained(
                str(folder), use_safetensors=True, **{dtype: self._dtype}, **local, **report
            )
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{folder} cannot be loaded as a depth checkpoint: {error}") from error
        _check_keys(folder, {"missing": info["missing_keys"], "misshapen": (key for key, *_ in info["mismatched_keys"])})
        return processor, network.to(self._device).eval()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See :class:`.depth.DepthEngine`."""
        size = frames.shape[1:3]
        pixels = self._processor(images=list(frames), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        with torch.inference_mode():
            output = self._network(pixel_values=pixels.to(self._device, self._dtype))
            raw = output.predicted_depth = output.predicted_depth.float()
            if not self._pads:
                return _resized(raw, size).cpu().numpy()
            cropped = self._processor.post_process_depth_estimation(output, source_sizes=[size] * len(frames))
            # Its bicubic filter swings beyond the network's values at edges, below zero as well, where there is no depth.
            return torch.stack([each["predicted_depth"] for each in cropped]).clamp(raw.min(), raw.max()).cpu().numpy()


@dataclass(frozen=True)
class _AuxNetwork:
    """A network of controlnet-aux.

    Attributes:
        file: name of the published weights.
        kind: of what ``infer`` gives.
        build: the network with random weights.
        infer: raw depth [T, 1, h, w] of pictures [T, 3, H, W] in 0 .. 1.
    """

    file: str
    kind: str
    build: Callable[[], torch.nn.Module]
    infer: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]


def _build_midas() -> torch.nn.Module:
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    return DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)


def _infer_midas(network: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    return network(_for_network(pictures, 384, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))[:, None]


def _build_zoe() -> torch.nn.Module:
    from controlnet_aux.zoe import ZoeDepth
    from controlnet_aux.zoe.zoedepth.utils.config import get_config

    return ZoeDepth.build_from_config(get_config("zoedepth", "infer"))


def _infer_zoe(network: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    return network.infer(pictures, with_flip_aug=False, upsampling_mode="bilinear")


def _build_leres() -> torch.nn.Module:
    from controlnet_aux.leres.leres.multi_depth_model_woauxi import RelDepthModel

    return RelDepthModel(backbone="resnext101")


def _infer_leres(network: torch.nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    # The network was trained on RGB in 0 .. 1; controlnet-aux's own picture feeds it BGR in 0 .. 255.
    return -network.depth_model(_for_network(pictures, 448, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


AUX_NETWORKS = {
    "midas": _AuxNetwork("dpt_hybrid-midas-501f0c75.pt", "disparity", _build_midas, _infer_midas),
    "zoe": _AuxNetwork("ZoeD_M12_N.pt", "depth", _build_zoe, _infer_zoe),
    "leres": _AuxNetwork("res101.pth", "disparity", _build_leres, _infer_leres),
}


class AuxDepth:
    """MiDaS, ZoeDepth or LeReS as controlnet-aux has them: the network's raw output, bilinearly resized to the frame.

    MiDaS gives inverse depth, Zoe metres. LeReS knows depth only up to scale *and shift*, so that it has no inverse: its depth
    is given negated, as disparity. Near and far are right then, and so is alignment; distances are spaced as in depth, which
    makes far things differ more than they should.

    Args:
        network: ``"midas"``, ``"zoe"`` or ``"leres"``.
        checkpoint: the published weights (``.pt``, ``.pth``), of which only tensors are read, or the same as ``.safetensors``.
        device, dtype: see :class:`TransformersDepth`.

    Raises:
        FileNotFoundError: no such file, with the name of the one to put there.
        ValueError: controlnet-aux is missing, or the file is damaged, holds more than tensors, or another network's.
    """

    window, overlap = 1, 0

    def __init__(self, network: str, checkpoint: Path, *, device: str = "cpu", dtype: str = "float32") -> None:
        if network not in AUX_NETWORKS:
            raise ValueError(f"controlnet-aux network {network!r} is not one of {', '.join(AUX_NETWORKS)}")
        published = AUX_NETWORKS[network]
        self.name, self.kind = f"{network} ({checkpoint.name})", published.kind
        self._device, self._dtype = device, _torch_dtype(dtype)
        self._infer = published.infer
        weights = _checkpoint_weights(checkpoint, published.file)
        network = _with_weights(_built(published), weights, checkpoint).eval()
        self._network = torch.nn.Module.to(network, device, self._dtype)  # Zoe's own ``to`` takes no dtype

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """See :class:`.depth.DepthEngine`."""
        with torch.inference_mode():
            pictures = torch.from_numpy(frames).to(self._device).movedim(-1, 1).to(self._dtype) / 255
            return _resized(self._infer(self._network, pictures)[:, 0].float(), frames.shape[1:3]).cpu().numpy()


def _checkpoint_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder that holds all files of a depth checkpoint."""
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: put all files of the depth checkpoint into that folder")
    if not any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise FileNotFoundError(
            f"{folder / 'model.safetensors'} is missing: put the checkpoint's weights there, as safetensors (pickled .bin "
            "files are not loaded)"
        )
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not valid JSON: {error}") from error

    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES as depth_models

    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in depth_models:
        raise ValueError(
            f"{folder / 'config.json'}: model type {found!r} is no depth-estimation model of the installed transformers, which "
            f"has {', '.join(sorted(depth_models))}"
        )
    return config


def _known_kind(kind: str | None, what: str) -> str:
    if kind is None:
        raise ValueError(
            f"{what}: it is not known whether this network gives disparity (larger = nearer) or depth (larger = farther): say "
            "which"
        )
    if kind not in KINDS:
        raise ValueError(f"{what}: kind {kind!r} is not one of {', '.join(KINDS)}")
    return kind


def _torch_dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return getattr(torch, name)


def _built(published: _AuxNetwork) -> torch.nn.Module:
    try:
        return published.build()
    except ImportError as error:
        raise ValueError(f"this depth engine needs the package controlnet-aux: pip install controlnet-aux ({error})") from error


def _checkpoint_weights(path: Path, published: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, out of whatever its training wrapped them in."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: put the weights {published} there")
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors, so it is not loaded, since it could run any program: where you trust it, convert "
            f"it to .safetensors ({error})"
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no checkpoint: copy the file {published} again ({error})") from error
    for wrapper in ("model", "depth_model"):
        if isinstance(weights, dict) and isinstance(weights.get(wrapper), dict):
            weights = weights[wrapper]
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no weights by name: give the file {published}")
    return {name.removeprefix("module."): value for name, value in weights.items()}


def _with_weights(network: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> torch.nn.Module:
    own = network.state_dict()
    # Older timm versions store this table, newer ones compute it.
    weights = {name: value for name, value in weights.items() if name in own or not name.endswith("relative_position_index")}
    misshapen = (name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    wrong = {"missing": own.keys() - weights.keys(), "unexpected": weights.keys() - own.keys(), "misshapen": misshapen}
    _check_keys(path, wrong)
    torch.nn.Module.load_state_dict(network, weights)  # Zoe's own lets anything pass
    return network


def _check_keys(path: Path, wrong: dict[str, Iterable[str]]) -> None:
    """Raise ValueError naming the tensors that are ``wrong``, by what is wrong with them."""
    texts = []
    for what, names in ((what, sorted(names)) for what, names in wrong.items()):
        if names:
            texts.append(f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})")
    if texts:
        raise ValueError(f"{path} does not fit its network: tensors {' and '.join(texts)}: give the published checkpoint")


def _resized(depth: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Depth [T, h, w] brought to ``size`` = (height, width); bilinear, which invents no values (bicubic swings beyond)."""
    return interpolate(depth[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _for_network(
    pictures: torch.Tensor, short: int, mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> torch.Tensor:
    """Pictures [T, 3, H, W] in 0 .. 1 with about ``short`` pixels along the shorter side, in multiples of 32, whitened."""
    sides = pictures.shape[-2:]
    size = [max(32, round(side * short / min(sides) / 32) * 32) for side in sides]
    resized = interpolate(pictures.float(), size, mode="bicubic", antialias=True, align_corners=False).to(pictures.dtype)
    return (resized - resized.new_tensor(mean).view(3, 1, 1)) / resized.new_tensor(deviation).view(3, 1, 1)


# --- depth that the user already has ----------------------------------------------------------------------------------

NEAR = ("black", "white")
PICTURES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".webp", ".bmp")
COLOURED = 0.05
"""Mean difference between the channels, of full scale, from which a picture counts as coloured: a grey one that was compressed
as colour stays far below."""


def grey_disparity(picture: np.ndarray, near: str, what: str = "picture") -> np.ndarray:
    """A grey depth picture as disparity (larger = nearer), float32 [H, W]; nothing is rounded.

    Args:
        picture: uint8, uint16 (0 .. full scale becomes 0 .. 1) or float (taken as it is), [H, W] or [H, W, C]; of more channels
            the mean, and alpha does not count.
        near: ``"white"`` (ComfyUI's depth nodes, most tools) or ``"black"`` (LongVie's own controls).
        what: for messages.

    Raises:
        ValueError: colours (a colour map has no order that could be read back), another type or shape.
    """
    _check_near(near)
    if picture.dtype not in (np.uint8, np.uint16) and picture.dtype.kind != "f":
        raise ValueError(f"{what} is {picture.dtype}: give 8 or 16 bits, or floats")
    if picture.ndim not in (2, 3) or picture.size == 0:
        raise ValueError(f"{what} is {list(picture.shape)}: expected [H, W] or [H, W, channels]")
    full = 1 if picture.dtype.kind == "f" else np.iinfo(picture.dtype).max
    channels = picture.reshape(*picture.shape[:2], -1).astype(np.float32) / np.float32(full)
    channels = channels[..., :1] if channels.shape[-1] < 3 else channels[..., :3]
    if np.ptp(channels, axis=-1).mean() > COLOURED:
        raise ValueError(f"{what} is coloured: a depth video that went through a colour map cannot be used, give the grey one")
    grey = channels.mean(axis=-1, dtype=np.float32)
    return grey if near == "white" else 1 - grey


class ReadyDepthVideo:
    """Grey depth that the user already has, as a video file or as pictures, in its full bit depth (see :func:`grey_disparity`).

    A video is read with its 8, 10, 12 or 16 bits. The grey values are taken as disparity on one scale for the whole video:
    depth that was normalised picture by picture flickers, and nothing here can mend that.

    Args:
        path: a video, a picture, or a folder of pictures, which count in the order of the numbers in their names.
        near: ``"white"`` or ``"black"``.

    Attributes:
        frames: number of pictures.

    Raises:
        FileNotFoundError, ValueError: no such file, not a video, or a folder without pictures.
    """

    kind = "disparity"

    def __init__(self, path: Path, near: str) -> None:
        _check_near(near)
        self.name = str(path)
        self._path, self._near = path, near
        self._pictures = _picture_files(path)
        self.frames = len(self._pictures) or _index(path).info.frames

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """Disparity float32 [H, W] of the frames ``numbers``, ascending; a number may come again.

        Raises:
            ValueError: when it is reached: a coloured or damaged picture.
        """
        if self._pictures:
            return (_read_picture(self._pictures[number], self._near) for number in numbers)
        return self._read_video(list(numbers))

    def _read_video(self, numbers: list[int]) -> Iterator[np.ndarray]:
        if not numbers:
            return
        for frame in read_frames(self._path, range(1)):
            grey_disparity(frame, self._near, f"{self._path}: frame 0")  # its colours are lost below
        rotation = _index(self._path).info.rotation
        wanted = iter(numbers)
        number = next(wanted)
        for found, frame in _numbered(self._path, _index(self._path), number):
            if frame is None or found is None or found > number:
                break
            if found < number:
                continue
            disparity = grey_disparity(np.rot90(_grey(frame), rotation // 90), self._near, f"{self._path}: frame {number}")
            while number == found:
                yield disparity
                number = next(wanted, None)
            if number is None:
                return
        raise ValueError(f"{self._path}: frame {number} is damaged: copy the file again, or export it anew")


class DepthArray:
    """Depth that the user already has as floats: ``.npy``, ``.npz`` or ``.safetensors`` of [L, H, W] ([L, 1, H, W] and
    [L, H, W, 1] as well), read frame by frame.

    Args:
        path: the file. Of several arrays in it, the one named ``disparity`` or ``depth`` is read, first the one that ``kind``
            names.
        kind: ``"disparity"`` (larger = nearer) or ``"depth"``: the file does not say it.

    Attributes:
        frames, height, width: shape.

    Raises:
        FileNotFoundError, ValueError: no such file, none of these formats, pickled objects, or no array of that shape.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = _known_kind(kind, str(path))
        self.name = str(path)
        self._path = path
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        openers = {".npy": _NpyArray, ".npz": _NpzArray, ".safetensors": _SafetensorsArray}
        if path.suffix.lower() not in openers:
            raise ValueError(f"{path} is no array file: give {', '.join(openers)}")
        self._array = openers[path.suffix.lower()](path, kind)
        shape = self._array.shape
        if len(shape) == 4 and 1 in (shape[1], shape[3]):
            shape = (shape[0], *(shape[2:] if shape[1] == 1 else shape[1:3]))
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"{path} holds an array {list(self._array.shape)}: expected [frames, height, width]")
        self.frames, self.height, self.width = shape

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers``, float32 [H, W], ascending; a number may come again."""
        return (frame.astype(np.float32).reshape(self.height, self.width) for frame in self._array.read(numbers))

    def signal(self, fps: Fraction) -> Signal | None:
        """The file itself as a signal, where it is already what one is on disk; None: it has to be copied."""
        if not self._array.plain:
            return None
        return Signal(self._path, self.kind, self.frames, self.height, self.width, fps)


class _NpyArray:
    """An array in a ``.npy`` file."""

    def __init__(self, path: Path, _kind: str) -> None:
        self._path = path
        with self._open() as (file, size):
            self._start, self.shape, self._dtype, version = _npy_header(file, str(path))
        whole = self._start + self._dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))
        if size != whole:
            raise ValueError(f"{path} has {size} bytes instead of {whole}: it is incomplete or damaged, copy it again")
        self.plain = version == (1, 0) and self._dtype == np.dtype("<f4") and len(self.shape) == 3

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        """The file, and how many bytes it has."""
        with self._path.open("rb") as file:
            yield file, self._path.stat().st_size

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        size = self._dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        with self._open() as (file, _):
            for number, repeats in itertools.groupby(numbers):
                file.seek(self._start + number * size)
                frame = np.frombuffer(file.read(size), self._dtype)
                yield from (frame for _ in repeats)


class _NpzArray(_NpyArray):
    """An array in a ``.npz`` file, compressed or not; unpacked on the fly."""

    def __init__(self, path: Path, kind: str) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no .npz file, or an incomplete one: {error}") from error
        self._name = _chosen(names, kind, path) + ".npy"
        super().__init__(path, kind)
        self.plain = False

    @contextmanager
    def _open(self) -> Iterator[tuple[IO[bytes], int]]:
        try:
            with zipfile.ZipFile(self._path) as archive, archive.open(self._name) as file:
                yield file, archive.getinfo(self._name).file_size
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{self._path} is damaged: copy it again ({error})") from error


class _SafetensorsArray:
    """An array in a ``.safetensors`` file. Opened anew for each frame: what a mapping has read counts as this process's
    memory as long as it is open."""

    plain = False

    def __init__(self, path: Path, kind: str) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                self._name = _chosen(list(file.keys()), kind, path)
                self.shape = tuple(file.get_slice(self._name).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or an incomplete one: {error}") from error

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        for number, repeats in itertools.groupby(numbers):
            with safe_open(self._path, "pt") as file:
                frame = file.get_slice(self._name)[number].float().numpy()
            yield from (frame for _ in repeats)


def _npy_header(file: IO[bytes], what: str) -> tuple[int, tuple[int, ...], np.dtype, tuple[int, int]]:
    """Where the values start, the shape, the type and the version of a ``.npy``."""
    try:
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"version {version} of the format is not known")
        shape, fortran, dtype = headers[version](file)
    except ValueError as error:
        raise ValueError(f"{what} is no .npy array: {error}") from error
    if dtype.kind not in "fui":
        raise ValueError(f"{what} holds {dtype}: only numbers are read, never pickled objects")
    if fortran:
        raise ValueError(f"{what} is stored in Fortran order, which cannot be read frame by frame: save it in C order")
    return file.tell(), shape, dtype, version


def _chosen(names: list[str], kind: str, path: Path) -> str:
    """The array to read: the one named as its kind, or as the other kind, or the only one."""
    for name in (kind, *KINDS):
        if name in names:
            return name
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} arrays ({', '.join(names)}): name the one to read 'depth' or 'disparity'")
    return names[0]


def _grey(frame: av.VideoFrame) -> np.ndarray:
    """A decoded picture without rounding: uint16 grey [H, W] of grey and YUV pictures, uint8 or uint16 RGB [H, W, 3] of RGB.

    FFmpeg's grey of YUV is the luma, exactly, brought to full range; its grey of RGB is weighted and rounded, and its 16 bits
    of 8-bit RGB end below full scale.
    """
    rgb = "rgb48le" if frame.format.components[0].bits > 8 else "rgb24"
    if frame.format.is_rgb:
        return frame.to_ndarray(format=rgb, src_color_range=frame.color_range)
    # By FFmpeg's filter: PyAV 16 itself cannot be told that the result's range is full.
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    given = "full" if frame.color_range == ColorRange.JPEG else "limited"
    scale, grey = graph.add("scale", f"in_range={given}:out_range=full"), graph.add("format", "gray16le")
    source.link_to(scale)
    scale.link_to(grey)
    grey.link_to(graph.add("buffersink"))
    graph.configure()
    graph.push(frame)
    return graph.pull().to_ndarray()


def _picture_files(path: Path) -> list[Path]:
    """The pictures of a folder in the order of the numbers in their names; a single picture; none for anything else."""
    if path.is_file():
        return [path] if path.suffix.lower() in PICTURES else []
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: there is no such file or folder")
    found = [file for file in path.iterdir() if file.suffix.lower() in PICTURES]
    if not found:
        raise ValueError(f"{path} holds no pictures: give a folder of {', '.join(PICTURES)}")

    def order(file: Path) -> list[tuple[bool, int, str]]:
        return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", file.name)]

    return sorted(found, key=order)


def _read_picture(path: Path, near: str) -> np.ndarray:
    import cv2

    # Unchanged: as deep as it is. Read by NumPy, since OpenCV does not open every file name everywhere.
    picture = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError(f"{path} is not a readable picture: export it again as PNG")
    return grey_disparity(picture, near, str(path))


def _check_near(near: str) -> None:
    if near not in NEAR:
        raise ValueError(f"near {near!r} is not one of {', '.join(NEAR)}")
