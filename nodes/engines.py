"""Depth and track engines that run on the host's own models, and what the host's sockets carry."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy as np
import torch
from comfy_extras.nodes_depth_anything_3 import DA3Inference, LoadDA3Model
from comfy_extras.nodes_void import OpticalFlowLoader

from ..longvie_core.control.depth.engine import DepthEngine
from ..longvie_core.control.depth.networks import AuxDepth, TransformersDepth
from ..longvie_core.control.depth.parallax import ParallaxDepth
from ..longvie_core.control.depth.pictures import grey_disparity
from ..longvie_core.control.tracks.types import Tracks, external_tracks

DEPTH_MODELS = "geometry_estimation"
"""The host's model folder for depth networks."""

FLOW_MODELS = "optical_flow"
"""The host's model folder for optical-flow networks."""

DEPTH_MENDS = {
    "Depth Anything 3": "put a Depth Anything 3 checkpoint such as depth_anything_3_mono_large.safetensors there",
    "transformers": "put a folder with config.json, preprocessor_config.json and model.safetensors of a depth-estimation "
    "checkpoint (Depth-Anything-V2-Small-hf, for instance) there",
    "controlnet-aux": "put dpt_hybrid-midas-501f0c75.pt (MiDaS), ZoeD_M12_N.pt (Zoe) or res101.pth (LeReS) there",
}
"""What to do where an engine has no weights."""

FLOW_MEND = "put torchvision's raft_large there (raft_large_C_T_SKHT_V2-ff5fadd5.pth, or its tensors as .safetensors)"

FLOW_LEAST_SIDE = 128
"""Pixels: smaller pictures are padded, RAFT's correlation pyramid needs them."""

NONE_FOUND = "(none found)"
"""What a list of files shows where there are none."""

PARALLAX = "parallax (no weights)"


class HostDepthAnything3:
    """:class:`~longvie_core.control.depth.engine.DepthEngine` on the host's Depth Anything 3 nodes: raw, unnormalized depth."""

    kind, window, overlap = "depth", 1, 0

    def __init__(self, file: str, resolution: int) -> None:
        self.name = file
        self.resolution = resolution
        (self.model,) = LoadDA3Model.execute(file, "default").result

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Depth float32 [T, H, W] of pictures uint8 RGB [T, H, W, 3]."""
        images = torch.from_numpy(frames).float().div_(255)
        mode = {"mode": "mono"}
        (geometry,) = DA3Inference.execute(self.model, images, self.resolution, "upper_bound_resize", mode).result
        return np.stack(list(GeometryDepth(geometry).read(range(len(frames)))))


class GeometryDepth:
    """:class:`~longvie_core.control.depth.ready.DepthSource` of a DA3_GEOMETRY; sky is infinitely far."""

    kind = "depth"
    name = "DA3_GEOMETRY"

    def __init__(self, geometry: dict) -> None:
        self.depth: torch.Tensor = geometry["depth"]
        self.sky: torch.Tensor | None = geometry.get("sky")
        self.frames = len(self.depth)

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers``, float32 [H, W]."""
        for number in numbers:
            depth = self.depth[number].float().cpu()
            if self.sky is not None:
                depth = torch.where(self.sky[number].cpu() > 0.5, torch.inf, depth)
            yield depth.numpy()


class ImageDepth:
    """:class:`~longvie_core.control.depth.ready.DepthSource` of an IMAGE batch of ready-made depth, in its full precision."""

    kind = "disparity"
    name = "the depth images"

    def __init__(self, images: torch.Tensor, near: str) -> None:
        self.images = images
        self.near = near
        self.frames = len(images)

    def read(self, numbers: Iterable[int]) -> Iterator[np.ndarray]:
        """The frames ``numbers`` as disparity, float32 [H, W]."""
        for number in numbers:
            yield grey_disparity(self.images[number].cpu().numpy(), self.near, f"{self.name}: frame {number}")


class HostRaft:
    """Optical flow by torchvision's RAFT, as the host loads and manages it: for
    :class:`~longvie_core.control.tracks.flow.FlowTracker`.

    Raises:
        ValueError: the file holds something else.
    """

    def __init__(self, file: str) -> None:
        try:
            (self.model,) = OpticalFlowLoader.execute(file).result
        except (RuntimeError, ValueError) as error:
            path = folder_paths.get_full_path_or_raise(FLOW_MODELS, file)
            raise ValueError(f"{path} does not hold torchvision's raft_large: {FLOW_MEND}") from error

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Flow float32 [H, W, 2] in pixels from one uint8 frame [H, W, 3] to another; sides are multiples of 8."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        height, width = first.shape[:2]
        comfy.model_management.load_models_gpu([self.model], memory_required=correlation_bytes(width, height))
        one, other = (raft_picture(frame).to(self.model.load_device) for frame in (first, second))
        flow = self.model.model(one, other)[-1][0, :, :height, :width]
        return flow.movedim(0, -1).float().cpu().numpy()


def raft_picture(frame: np.ndarray) -> torch.Tensor:
    """uint8 [H, W, 3] -> float32 [1, 3, H, W] in -1 .. 1, small sides padded with their edge."""
    picture = torch.from_numpy(frame).movedim(-1, 0)[None].float().div_(127.5).sub_(1)
    padding = [max(0, FLOW_LEAST_SIDE - side) for side in frame.shape[1::-1]]
    return torch.nn.functional.pad(picture, (0, padding[0], 0, padding[1]), mode="replicate")


def correlation_bytes(width: int, height: int) -> int:
    """Bytes that RAFT's correlations of all pairs of 8x8 blocks take: their pyramid, and as much again while it is made."""
    return 3 * 4 * (width * height // 64) ** 2


def socket_tracks(tracks: dict | None) -> Tracks:
    """What the host's TRACKS socket carries, checked; the coordinates are pixels.

    Raises:
        ValueError: nothing is connected, or it is no tracks of a video.
    """
    if tracks is None:
        raise ValueError("the engine 'TRACKS' needs the input tracks: connect a tracker, or choose Lucas-Kanade")
    if not isinstance(tracks, dict) or "track_path" not in tracks:
        raise ValueError("the input tracks carries no 'track_path', as the host's TRACKS do: connect a node that makes these")
    path, visibility = (
        None if part is None else torch.as_tensor(part).detach().cpu().float().numpy()
        for part in (tracks["track_path"], tracks.get("track_visibility"))
    )
    return external_tracks(path, visibility)


def flow_files() -> list[str]:
    """Weight files of optical-flow networks."""
    return folder_paths.get_filename_list(FLOW_MODELS) or [NONE_FOUND]


def flow_file(name: str) -> Path:
    """The weight file of an optical-flow network.

    Raises:
        ValueError: there is none.
    """
    if name == NONE_FOUND:
        raise ValueError(f"RAFT needs weights in models/{FLOW_MODELS}, and there are none: {FLOW_MEND}")
    return Path(folder_paths.get_full_path_or_raise(FLOW_MODELS, name))


def depth_files() -> list[str]:
    """Weight files of depth networks."""
    return folder_paths.get_filename_list(DEPTH_MODELS) or [NONE_FOUND]


def transformers_folders() -> list[str]:
    """Folders of transformers checkpoints below the host's depth model folder."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(DEPTH_MODELS)]
    names = {config.parent.relative_to(root).as_posix() for root in roots for config in root.glob("*/config.json")}
    return sorted(names) or [NONE_FOUND]


def depth_engine(choice: dict) -> DepthEngine:
    """The engine that the widgets describe.

    Args:
        choice: what the host passes for the ``engine`` widget.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing and where it belongs.
    """
    engine, weights = choice["engine"], depth_weights(choice)
    if weights is None:
        return ParallaxDepth()
    device = str(comfy.model_management.get_torch_device())
    if engine == "Depth Anything 3":
        return HostDepthAnything3(choice["model"], choice["resolution"])
    if engine == "transformers":
        return TransformersDepth(weights, device=device)
    return AuxDepth(choice["network"], weights, device=device)


def depth_weights(choice: dict) -> Path | None:
    """The file or folder with the weights that the widgets name; ``None`` for an engine without any.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing and where it belongs.
    """
    engine, name = choice["engine"], choice.get("model")
    if engine == PARALLAX:
        return None
    if name == NONE_FOUND:
        raise ValueError(f"{engine} needs weights in models/{DEPTH_MODELS}, and there are none: {DEPTH_MENDS[engine]}")
    if engine == "transformers":
        roots = map(Path, folder_paths.get_folder_paths(DEPTH_MODELS))
        return next(root for root in roots if (root / name / "config.json").is_file()) / name
    return Path(folder_paths.get_full_path_or_raise(DEPTH_MODELS, name))
