"""Depth networks of transformers and controlnet-aux, each as a :class:`.engine.DepthEngine`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from ..raw_depth import check_kind

DTYPES = ("float32", "float16", "bfloat16")


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
        self.kind = _required_kind(kind or published_kind(config), f"{folder} ({config['model_type']})")
        self._device, self._dtype = device, _torch_dtype(dtype)
        self._pads = config["model_type"] == "zoedepth"
        self._processor, self._network = self._load(folder)

    def _load(self, folder: Path) -> tuple[Any, torch.nn.Module]:
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation, __version__

        dtype = "dtype" if tuple(map(int, __version__.split(".")[:2])) >= (4, 56) else "torch_dtype"  # its older name

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        # Weights of another shape are let through here, and refused by name below.
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
        """Raw depth float32 [T, H, W] of pictures uint8 RGB [T, H, W, 3]."""
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
    """How to make and ask a network of controlnet-aux.

    Attributes:
        file: name of the published weights.
        kind: of what ``infer`` gives.
        build: makes the network with random weights.
        infer: gives raw depth [T, 1, h, w] of pictures [T, 3, H, W] in 0 .. 1.
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

    MiDaS gives inverse depth, Zoe metres. LeReS knows depth only up to scale *and shift*, so it has no inverse: its negated
    depth is taken as disparity. So near and far are right, and alignment works; but distances are spaced as in depth, and far
    things differ more than they should.

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
        """Raw depth float32 [T, H, W] of pictures uint8 RGB [T, H, W, 3]."""
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

    model_type = config.get("model_type") if isinstance(config, dict) else None
    if model_type not in depth_models:
        raise ValueError(
            f"{folder / 'config.json'}: model type {model_type!r} is no depth-estimation model of the installed transformers, "
            f"which has {', '.join(sorted(depth_models))}"
        )
    return config


def _required_kind(kind: str | None, what: str) -> str:
    if kind is None:
        raise ValueError(
            f"{what}: it is not known whether this network gives disparity (larger = nearer) or depth (larger = farther): say "
            "which"
        )
    check_kind(kind, what)
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
    # A table that older timm versions store and newer ones compute.
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
    """Depth [T, h, w] brought to ``size`` = (height, width); bilinear, since bicubic swings beyond the values."""
    return interpolate(depth[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _for_network(
    pictures: torch.Tensor, short: int, mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> torch.Tensor:
    """Pictures [T, 3, H, W] in 0 .. 1 resized to about ``short`` pixels along the shorter side, in multiples of 32, less
    each channel's mean and divided by its deviation."""
    sides = pictures.shape[-2:]
    size = [max(32, round(side * short / min(sides) / 32) * 32) for side in sides]
    resized = interpolate(pictures.float(), size, mode="bicubic", antialias=True, align_corners=False).to(pictures.dtype)
    return (resized - resized.new_tensor(mean).view(3, 1, 1)) / resized.new_tensor(deviation).view(3, 1, 1)
