"""Depth engines: which way round their output is, full bit depth, and what is refused, by name.

The published weights are not at hand: the networks run here with weights made up on the spot, and which way round the published
ones answer is taken from their documentation.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange
from safetensors.numpy import save_file

from longvie_core.control.depth import networks
from longvie_core.control.depth.arrays import DepthArray
from longvie_core.control.depth.engine import extract_depth
from longvie_core.control.depth.networks import AUX_NETWORKS, AuxDepth, TransformersDepth, published_kind
from longvie_core.control.depth.pictures import ReadyDepthVideo, grey_disparity
from longvie_core.control.depth.ready import copy_depth
from longvie_core.control.normalize import write_control
from longvie_core.control.raw_depth import RawDepth
from longvie_core.media.read import read_frames
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from tests.helpers.tiny_depth import tiny_depth_checkpoint

WIDTH, HEIGHT, LENGTH = 48, 32, 5
FPS = Fraction(16)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Exact disparity in 0 .. 1 [LENGTH, HEIGHT, WIDTH] of a world with sky."""
    frames = render_frames(make_scene(0), LENGTH, 16, WIDTH, HEIGHT, supersample=1)
    disparity = np.stack([frame.disparity for frame in frames])
    return disparity / disparity.max()


class Bright:
    """A video that is as bright as its scene is near: a network that answers with brightness answers with disparity."""

    fps = FPS

    def __init__(self, disparity: np.ndarray) -> None:
        self.pictures = np.repeat(np.rint(disparity * 255).astype(np.uint8)[..., None], 3, axis=-1)
        self.frames = len(disparity)

    def read(self, numbers: range) -> Iterator[np.ndarray]:
        return (self.pictures[number] for number in numbers)


def assert_near_is_black(raw_depth: RawDepth, truth: np.ndarray, folder: Path) -> None:
    """Through the whole chain to the control's pictures: near black, far white, and in between in order."""
    plan = ClipPlan(WIDTH, HEIGHT, frames=LENGTH)
    control = write_control(raw_depth, plan, folder / "dense.mkv")
    got = np.stack(list(read_frames(control.paths[0], range(LENGTH))))[..., 0].astype(int)
    near, far = truth >= np.percentile(truth, 97), truth <= np.percentile(truth, 3)
    assert got[near].mean() < 20 and got[far].mean() > 235
    ranks = [np.argsort(np.argsort(values, axis=None)) for values in (got, truth)]
    assert np.corrcoef(*ranks)[0, 1] < -0.9


# --- transformers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Depth Anything with random weights."""
    folder = tmp_path_factory.mktemp("models") / "Depth-Anything-Tiny"
    tiny_depth_checkpoint(folder)
    return folder


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an engine went to the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class Answers(torch.nn.Module):
    """In place of a transformers network: answers with a function of its input's brightness."""

    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(predicted_depth=self.answer(pixel_values.mean(1)))


class TestTransformers:
    @pytest.mark.usefixtures("offline")
    def test_raw_output(self, checkpoint: Path, truth: np.ndarray) -> None:
        """What the network says, not what tools make of it: compared with the network and processor called by hand."""
        from transformers import DepthAnythingForDepthEstimation, DPTImageProcessor

        engine = TransformersDepth(checkpoint)
        assert (engine.kind, engine.window, engine.overlap) == ("disparity", 1, 0)
        assert engine.name == "depth_anything (Depth-Anything-Tiny)"
        pictures = np.random.default_rng(0).integers(0, 256, (2, HEIGHT, WIDTH, 3), np.uint8)
        got = engine(pictures)
        assert got.dtype == np.float32 and got.shape == (2, HEIGHT, WIDTH) and np.ptp(got) > 0
        network = DepthAnythingForDepthEstimation.from_pretrained(checkpoint).eval()
        pixels = DPTImageProcessor.from_pretrained(checkpoint)(images=list(pictures), return_tensors="pt")
        with torch.no_grad():
            raw = network(**pixels).predicted_depth
        for depth, expected in zip(got, raw.numpy(), strict=True):
            assert expected.shape != depth.shape
            np.testing.assert_allclose(depth, cv2.resize(expected, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR), rtol=2e-4)

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_half_precision(self, checkpoint: Path, dtype: str) -> None:
        pictures = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), np.uint8)
        got = TransformersDepth(checkpoint, dtype=dtype)(pictures)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, TransformersDepth(checkpoint)(pictures), rtol=0.02)

    @pytest.mark.parametrize(
        ("config", "kind"),
        [
            ({"model_type": "depth_anything"}, "disparity"),
            ({"model_type": "depth_anything", "depth_estimation_type": "relative"}, "disparity"),
            ({"model_type": "depth_anything", "depth_estimation_type": "metric"}, "depth"),
            ({"model_type": "dpt", "backbone_config": None}, "disparity"),
            ({"model_type": "dpt", "backbone_config": {"model_type": "bit"}}, "disparity"),
            ({"model_type": "dpt", "backbone_config": {"model_type": "dinov2"}}, "depth"),
            ({"model_type": "zoedepth"}, "depth"),
            ({"model_type": "glpn"}, "depth"),
            ({"model_type": "depth_pro"}, "disparity"),
            ({"model_type": "chmv2"}, None),
        ],
    )
    def test_kinds(self, config: dict[str, object], kind: str | None) -> None:
        assert published_kind(config) == kind

    @pytest.mark.parametrize(
        ("config", "kind", "answer"),
        [
            ({}, "disparity", lambda bright: bright),
            ({"depth_estimation_type": "metric"}, "depth", lambda bright: 1 / (bright - bright.min() + 0.1)),
        ],
    )
    def test_near_comes_out_black(
        self, copied: Path, tmp_path: Path, truth: np.ndarray, config: dict[str, str], kind: str, answer: Callable
    ) -> None:
        configure(copied, **config)
        engine = TransformersDepth(copied)
        engine._network = Answers(answer)
        raw_depth = extract_depth(Bright(truth), engine, tmp_path / "d.npy")
        assert raw_depth.kind == engine.kind == kind
        assert_near_is_black(raw_depth, truth, tmp_path)

    def test_zoe_of_transformers(self, copied: Path, tmp_path: Path, truth: np.ndarray) -> None:
        """Padding is cut off again, and no filter swings beyond the network's own values."""
        from transformers import ZoeDepthImageProcessor

        engine = TransformersDepth(copied, kind="depth")
        engine._processor, engine._pads = ZoeDepthImageProcessor(size={"height": 64, "width": 96}), True
        engine._network = Answers(lambda bright: torch.where(bright > 0, 0.01, 80.0))
        raw_depth = extract_depth(Bright(np.where(truth > 0.2, 1.0, 0.0)), engine, tmp_path / "d.npy")
        got = np.load(raw_depth.path)
        assert got.shape == (LENGTH, HEIGHT, WIDTH) and got.min() > 0.0099 and got.max() < 80.01
        assert np.mean((got < 40) == (truth > 0.2)) > 0.97

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
    def test_a_missing_file(self, copied: Path, name: str) -> None:
        (copied / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf"copy/{name} is missing: put"):
            TransformersDepth(copied)

    def test_pickled_weights_are_not_loaded(self, copied: Path) -> None:
        (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
        with pytest.raises(FileNotFoundError, match=r"as safetensors \(pickled .bin files are not loaded\)"):
            TransformersDepth(copied)

    def test_bad_files(self, copied: Path) -> None:
        weights = (copied / "model.safetensors").read_bytes()
        (copied / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(ValueError, match="copy cannot be loaded as a depth checkpoint"):
            TransformersDepth(copied)
        (copied / "model.safetensors").write_bytes(weights)
        configure(copied, neck_hidden_sizes=[8, 8, 8, 12])
        with pytest.raises(ValueError, match=r"copy does not fit its network: tensors \d+ misshapen \(neck"):
            TransformersDepth(copied)
        configure(copied, neck_hidden_sizes=[8] * 4, model_type="vit")
        with pytest.raises(ValueError, match=r"config.json: model type 'vit' is no depth-estimation model .* depth_anything"):
            TransformersDepth(copied)
        (copied / "config.json").write_text("{")
        with pytest.raises(ValueError, match="config.json is not valid JSON"):
            TransformersDepth(copied)

    def test_a_tensor_that_is_missing(self, copied: Path) -> None:
        from safetensors.torch import load_file, save_file

        weights = load_file(copied / "model.safetensors")
        del weights["head.conv1.weight"]
        save_file(weights, copied / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"tensors 1 missing \(head.conv1.weight\)"):
            TransformersDepth(copied)

    def test_settings(self, checkpoint: Path, copied: Path) -> None:
        with pytest.raises(ValueError, match="kind 'near' is not one of disparity, depth"):
            TransformersDepth(checkpoint, kind="near")
        with pytest.raises(ValueError, match="dtype 'int8' is not one of float32"):
            TransformersDepth(checkpoint, dtype="int8")
        assert TransformersDepth(checkpoint, kind="depth").kind == "depth"
        configure(copied, model_type="prompt_depth_anything")
        unknown = r"\(prompt_depth_anything\): it is not known whether this network gives disparity"
        with pytest.raises(ValueError, match=unknown):
            TransformersDepth(copied)


# --- controlnet-aux -----------------------------------------------------------------------------------------------


class TinyMidas(torch.nn.Module):
    """Brightness = inverse depth; [T, h, w]."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(2))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.mean(1) + 1) * self.gain[0]


class TinyZoe(TinyMidas):
    """Metres; the same ``infer`` as ZoeDepth; like it, it lets any weights pass."""

    def load_state_dict(self, _: object, strict: bool = True) -> None:
        raise AssertionError("ZoeDepth's own way of loading hides what is missing")

    def infer(self, pixels: torch.Tensor, pad_input: bool = True, with_flip_aug: bool = True, **more: str) -> torch.Tensor:
        assert not with_flip_aug and more == {"upsampling_mode": "bilinear"}
        return self.gain[0] / (pixels.mean(1, keepdim=True) + 0.1)


class TinyLeres(torch.nn.Module):
    """Depth up to scale and shift: larger = farther, and below zero as well."""

    def __init__(self) -> None:
        super().__init__()
        self.depth_model = torch.nn.Conv2d(3, 1, 1)


TINY = {"midas": TinyMidas, "zoe": TinyZoe, "leres": TinyLeres}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a tiny network in the place of one of controlnet-aux, and gives a checkpoint for it."""

    def make(name: str) -> Path:
        monkeypatch.setitem(AUX_NETWORKS, name, replace(AUX_NETWORKS[name], build=TINY[name]))
        weights = dict(TINY[name]().state_dict())
        if name == "leres":
            weights = {"depth_model.weight": torch.full((1, 3, 1, 1), -1.0), "depth_model.bias": torch.tensor([0.5])}
        path = tmp_path / AUX_NETWORKS[name].file
        torch.save(weights, path)
        return path

    return make


class TestAux:
    @pytest.mark.parametrize(("name", "kind"), [("midas", "disparity"), ("zoe", "depth"), ("leres", "disparity")])
    def test_near_comes_out_black(
        self, tiny: Callable[[str], Path], tmp_path: Path, truth: np.ndarray, name: str, kind: str
    ) -> None:
        path = tiny(name)
        engine = AuxDepth(name, path)
        assert (engine.kind, engine.window, engine.overlap, engine.name) == (kind, 1, 0, f"{name} ({path.name})")
        got = engine(np.zeros((2, 20, 33, 3), np.uint8))
        assert got.shape == (2, 20, 33) and got.dtype == np.float32
        raw_depth = extract_depth(Bright(truth), engine, tmp_path / "d.npy")
        assert raw_depth.kind == kind
        assert_near_is_black(raw_depth, truth, tmp_path)

    def test_what_the_networks_see(self, tiny: Callable[[str], Path]) -> None:
        """RGB as they were trained: MiDaS -1 .. 1, LeReS by the statistics of ImageNet; sides in multiples of 32."""
        seen = []
        for name, part in (("midas", ""), ("leres", "depth_model")):
            engine = AuxDepth(name, tiny(name))
            engine._network.get_submodule(part).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy()))
            engine(np.broadcast_to(np.array([255, 0, 51], np.uint8), (1, 100, 150, 3)).copy())
        midas, leres = seen
        assert midas.shape == (1, 3, 384, 576) and leres.shape == (1, 3, 448, 672)
        np.testing.assert_allclose(midas[0, :, 9, 9], [1, -1, -0.6], atol=1e-5)
        expected = (np.array([1, 0, 0.2]) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        np.testing.assert_allclose(leres[0, :, 9, 9], expected, atol=1e-5)

    @pytest.mark.parametrize("name", ["midas", "leres"])
    @pytest.mark.usefixtures("offline")
    def test_the_real_network(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Built, loaded and run without a download. Each weight tensor is one number, so that the file stays small."""
        for initializer in ("normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_"):
            monkeypatch.setattr(torch.nn.init, initializer, lambda tensor, *_, **__: tensor)
        keys = AUX_NETWORKS[name].build().state_dict()
        small = {key: torch.full((), 1e-3, dtype=value.dtype).expand(value.shape) for key, value in keys.items()}
        path = tmp_path / "weights.pt"
        wrapped = {"depth_model": {f"module.{key}": value for key, value in small.items()}} if name == "leres" else small
        torch.save(wrapped, path)
        for_network = networks._for_network
        monkeypatch.setattr(networks, "_for_network", lambda pictures, _, *white: for_network(pictures, 64, *white))
        got = AuxDepth(name, path)(np.full((1, 48, 80, 3), 99, np.uint8))
        assert got.shape == (1, 48, 80) and np.isfinite(got).all()

    def test_zoe_is_called_as_the_package_has_it(self) -> None:
        """1.4 GB: not built here."""
        from controlnet_aux.zoe import ZoeDepth
        from controlnet_aux.zoe.zoedepth.utils.config import get_config

        assert get_config("zoedepth", "infer")["use_pretrained_midas"] is False  # no download
        assert "with_flip_aug" in inspect.signature(ZoeDepth.infer).parameters
        assert "upsampling_mode" in inspect.signature(ZoeDepth._infer_with_pad_aug).parameters

    def test_safetensors_and_wrapped_weights(self, tiny: Callable[[str], Path], tmp_path: Path) -> None:
        from safetensors.torch import save_file

        published = tiny("midas")
        weights = {"gain": torch.tensor([3.0, 0.0])}
        pictures = np.full((1, 32, 32, 3), 255, np.uint8)
        save_file(weights, tmp_path / "m.safetensors")
        torch.save({"model": {f"module.{key}": value for key, value in weights.items()}, "epoch": 5}, published)
        for path in (tmp_path / "m.safetensors", published):
            np.testing.assert_allclose(AuxDepth("midas", path)(pictures), 6, rtol=1e-5)

    def test_the_position_table_of_older_timm_is_left_out(self, tiny: Callable[[str], Path]) -> None:
        path = tiny("zoe")
        torch.save({"model": {"gain": torch.ones(2), "blocks.0.attn.relative_position_index": torch.zeros(3)}}, path)
        AuxDepth("zoe", path)

    def test_bad_checkpoints(self, tiny: Callable[[str], Path], tmp_path: Path) -> None:
        path = tiny("zoe")
        with pytest.raises(FileNotFoundError, match=r"none.pt is missing: put the weights ZoeD_M12_N.pt there"):
            AuxDepth("zoe", tmp_path / "none.pt")
        torch.save({"gain": torch.ones(2), "more": torch.ones(1)}, path)
        with pytest.raises(ValueError, match=r"ZoeD_M12_N.pt does not fit its network: tensors 1 unexpected \(more\)"):
            AuxDepth("zoe", path)
        torch.save({"other": torch.ones(2)}, path)
        with pytest.raises(ValueError, match=r"tensors 1 missing \(gain\) and 1 unexpected \(other\)"):
            AuxDepth("zoe", path)
        torch.save({"gain": torch.ones(3)}, path)
        with pytest.raises(ValueError, match=r"tensors 1 misshapen \(gain\): give the published checkpoint"):
            AuxDepth("zoe", path)
        torch.save([torch.ones(3)], path)
        with pytest.raises(ValueError, match="holds no weights by name: give the file ZoeD_M12_N.pt"):
            AuxDepth("zoe", path)
        for name, content in (("zoe.pt", b"PK\x03\x04 and no more"), ("zoe.safetensors", b"no header"), ("empty.pt", b"")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=f"{name} is damaged or no checkpoint"):
                AuxDepth("zoe", tmp_path / name)
        with pytest.raises(ValueError, match="network 'dpt' is not one of midas, zoe, leres"):
            AuxDepth("dpt", path)

    def test_programs_in_checkpoints_do_not_run(self, tiny: Callable[[str], Path], tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Callable, tuple[Path]]:
                return (os.mkdir, (str(tmp_path / "trapped"),))

        path = tiny("midas")
        torch.save({"gain": torch.ones(2), "trap": Trap()}, path)
        with pytest.raises(ValueError, match=r"holds more than tensors, so it is not loaded.* convert it to .safetensors"):
            AuxDepth("midas", path)
        assert not (tmp_path / "trapped").exists()

    def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.save({}, tmp_path / "w.pt")
        for name in [name for name in sys.modules if name.startswith("controlnet_aux")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "controlnet_aux", None)
        for name in AUX_NETWORKS:
            with pytest.raises(ValueError, match="needs the package controlnet-aux: pip install controlnet-aux"):
                AuxDepth(name, tmp_path / "w.pt")


# --- ready depth --------------------------------------------------------------------------------------------------


def encoded(path: Path, frames: np.ndarray, pixel_format: str, colour_range: ColorRange | None = None) -> Path:
    """A lossless video of frames: [L, H, W] as the first plane of ``pixel_format``, [L, H, W, 3] as its picture."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("ffv1", rate=16, options={"level": "3"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if colour_range is not None:
            stream.codec_context.color_range = colour_range
        for number, frame in enumerate(frames):
            if frame.ndim == 3:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24" if frame.dtype == np.uint8 else "rgb48le")
                picture = picture.reformat(format=pixel_format)
            else:
                picture = planes(frame, pixel_format)
            picture.pts, picture.time_base = number, Fraction(1, 16)
            if colour_range is not None:
                picture.color_range = colour_range
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    return path


def planes(values: np.ndarray, pixel_format: str) -> av.VideoFrame:
    picture = av.VideoFrame(values.shape[1], values.shape[0], pixel_format)
    for number, plane in enumerate(picture.planes):
        stride = plane.line_size // values.itemsize
        neutral = 1 << (picture.format.components[0].bits - 1)
        content = np.full((plane.height, stride), neutral, values.dtype)
        if number == 0:
            content[:, : values.shape[1]] = values
        plane.update(content)
    return picture


class TestReadyVideo:
    @pytest.mark.parametrize(
        ("pixel_format", "bits", "colour_range"),
        [
            ("gray", 8, None),
            ("gray10le", 10, None),
            ("gray12le", 12, None),
            ("gray16le", 16, None),
            ("yuv420p", 8, ColorRange.JPEG),
            ("yuv420p10le", 10, ColorRange.JPEG),
            ("yuv420p10le", 10, ColorRange.MPEG),
            ("yuv444p12le", 12, ColorRange.MPEG),
        ],
    )
    def test_no_bit_is_lost(self, tmp_path: Path, pixel_format: str, bits: int, colour_range: ColorRange | None) -> None:
        """Every level stays a level of its own, in even steps from 0 to 1."""
        limited = colour_range == ColorRange.MPEG
        low, high = (16 << bits - 8, 235 << bits - 8) if limited else (0, (1 << bits) - 1)
        levels = np.linspace(low, high, min(high - low + 1, 4096)).round().astype(np.uint8 if bits == 8 else np.uint16)
        frame = np.resize(levels, (64, 64))
        path = encoded(tmp_path / "d.mkv", np.stack([frame] * 2), pixel_format, colour_range)
        source = ReadyDepthVideo(path, "white")
        assert (source.frames, source.kind) == (2, "disparity")
        (got,) = source.read([1])
        expected = (frame.astype(np.float64) - low) / (high - low)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1.1 / 65535)
        assert len(np.unique(got)) == len(np.unique(levels))
        (black,) = ReadyDepthVideo(path, "black").read([1])
        np.testing.assert_allclose(black, 1 - expected, atol=1.2 / 65535)

    @pytest.mark.parametrize("pixel_format", ["gbrp10le", "gbrp16le", "rgb48le"])
    def test_grey_in_rgb_of_many_bits(self, tmp_path: Path, pixel_format: str) -> None:
        bits = 10 if pixel_format == "gbrp10le" else 16
        levels = np.resize(np.arange(1024), (32, 32)).astype(np.uint16) * (65535 / 1023)
        rgb = np.repeat(levels.round().astype(np.uint16)[..., None], 3, axis=-1)
        (got,) = ReadyDepthVideo(encoded(tmp_path / "d.mkv", rgb[None], pixel_format), "white").read([0])
        np.testing.assert_allclose(got, levels / 65535, atol=0.6 / (1 << bits))
        assert len(np.unique(got)) == 1024

    @pytest.mark.parametrize("near", ["white", "black"])
    def test_near_comes_out_black(self, tmp_path: Path, truth: np.ndarray, near: str) -> None:
        values = np.rint((truth if near == "white" else 1 - truth) * 65535).astype(np.uint16)
        source = ReadyDepthVideo(encoded(tmp_path / "d.mkv", values, "gray16le"), near)
        raw_depth = copy_depth(source, tmp_path / "d.npy", FPS)
        assert_near_is_black(raw_depth, truth, tmp_path)

    def test_our_own_control_video(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).integers(0, 256, (4, 16, 24), np.uint8)
        with VideoWriter(tmp_path / "c.mkv", 24, 16, FPS, codec="lossless") as writer:
            for frame in values:
                writer.write(np.repeat(frame[..., None], 3, axis=-1))
        got = np.stack(list(ReadyDepthVideo(tmp_path / "c.mkv", "black").read(range(4))))
        np.testing.assert_allclose(got, 1 - values / 255, atol=1e-6)

    def test_frames_by_number(self, tmp_path: Path) -> None:
        values = np.arange(30, dtype=np.uint16)[:, None, None] * np.ones((1, 16, 16), np.uint16) * 1000
        source = ReadyDepthVideo(encoded(tmp_path / "d.mkv", values, "gray16le"), "white")
        got = [round(float(frame[0, 0]) * 65.535) for frame in source.read([3, 3, 7, 20, 29, 29])]
        assert got == [3, 3, 7, 20, 29, 29]
        assert list(source.read([])) == []

    def test_pictures(self, tmp_path: Path) -> None:
        folder = tmp_path / "depth"
        folder.mkdir()
        values = np.random.default_rng(0).integers(0, 65536, (12, 8, 10), np.uint16)
        for number, frame in enumerate(values):
            content = frame if number % 2 else np.repeat(frame[..., None], 3, axis=-1)
            cv2.imwrite(str(folder / f"d{number}.png"), content)  # d10 comes after d9
        (folder / "notes.txt").write_text("no picture")
        source = ReadyDepthVideo(folder, "white")
        assert source.frames == 12
        got = np.stack(list(source.read(range(12))))
        np.testing.assert_array_equal(np.rint(got * 65535), values)
        (alone,) = ReadyDepthVideo(folder / "d3.png", "black").read([0])
        np.testing.assert_allclose(alone, 1 - values[3] / 65535, atol=1e-6)

    def test_floats_and_alpha(self, tmp_path: Path) -> None:
        values = np.random.default_rng(0).standard_normal((8, 10)).astype(np.float32)
        cv2.imwrite(str(tmp_path / "d.tiff"), values)
        (got,) = ReadyDepthVideo(tmp_path / "d.tiff", "white").read([0])
        np.testing.assert_array_equal(got, values)
        grey = np.random.default_rng(0).integers(0, 256, (8, 10), np.uint8)
        rgba = np.dstack([grey, grey, grey, 255 - grey])
        np.testing.assert_allclose(grey_disparity(rgba, "white"), grey / 255, atol=1e-6)
        np.testing.assert_allclose(grey_disparity(np.dstack([grey, 255 - grey]), "white"), grey / 255, atol=1e-6)

    def test_alpha_in_a_video(self, tmp_path: Path) -> None:
        values = np.resize(np.arange(1024), (1, 32, 32)).astype(np.uint16)
        path = encoded(tmp_path / "d.mkv", values, "yuva420p10le", ColorRange.JPEG)
        (got,) = ReadyDepthVideo(path, "white").read([0])
        np.testing.assert_allclose(got, values[0] / 1023, atol=1.1 / 65535)

    def test_colours_are_refused(self, tmp_path: Path) -> None:
        ramp = np.resize(np.arange(256), (1, 32, 32)).astype(np.uint8)
        coloured = cv2.applyColorMap(ramp[0], cv2.COLORMAP_TURBO)
        video = encoded(tmp_path / "d.mkv", coloured[None], "yuv444p", ColorRange.JPEG)
        cv2.imwrite(str(tmp_path / "d.png"), coloured)
        for path in (video, tmp_path / "d.png"):
            with pytest.raises(ValueError, match=rf"{path.name}.* is coloured: a depth video that went through a colour map"):
                next(ReadyDepthVideo(path, "white").read([0]))

    def test_grey_compressed_as_colour_is_no_colour(self, tmp_path: Path, truth: np.ndarray) -> None:
        grey = np.repeat(np.rint(truth * 255).astype(np.uint8)[..., None], 3, axis=-1)
        with VideoWriter(tmp_path / "d.mp4", WIDTH, HEIGHT, FPS, crf=30) as writer:
            for frame in grey:
                writer.write(frame)
        got = np.stack(list(ReadyDepthVideo(tmp_path / "d.mp4", "white").read(range(LENGTH))))
        assert np.abs(got - truth).mean() < 0.05

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="none.mkv: there is no such file or folder"):
            ReadyDepthVideo(tmp_path / "none.mkv", "white")
        with pytest.raises(ValueError, match="holds no pictures: give a folder of .png"):
            ReadyDepthVideo(tmp_path, "white")
        (tmp_path / "d.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match="d.png is not a readable picture"):
            next(ReadyDepthVideo(tmp_path / "d.png", "white").read([0]))
        (tmp_path / "d.mp4").write_bytes(b"no video")
        with pytest.raises(ValueError, match="d.mp4 cannot be opened as a video"):
            ReadyDepthVideo(tmp_path / "d.mp4", "white")
        with pytest.raises(ValueError, match="near 'bright' is not one of black, white"):
            ReadyDepthVideo(tmp_path / "d.png", "bright")
        with pytest.raises(ValueError, match="picture is int64: give 8 or 16 bits, or floats"):
            grey_disparity(np.zeros((2, 2), int), "white")
        with pytest.raises(ValueError, match=r"picture is \[5\]: expected \[H, W\]"):
            grey_disparity(np.zeros(5, np.uint8), "white")


# --- arrays -------------------------------------------------------------------------------------------------------


def saved(path: Path, array: np.ndarray, name: str = "depth", **others: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".safetensors":
        save_file({name: np.ascontiguousarray(array), **others}, path)
    else:
        (np.savez_compressed if "packed" in path.name else np.savez)(path, **{name: array, **others})
    return path


FILES = ["d.npy", "d.npz", "packed.npz", "d.safetensors"]


class TestArrays:
    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("axes", ["LHW", "L1HW", "LHW1"])
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
    def test_any_layout(self, tmp_path: Path, name: str, axes: str, dtype: type) -> None:
        values = np.random.default_rng(0).random((7, 4, 6)).astype(dtype)
        shaped = {"LHW": values, "L1HW": values[:, None], "LHW1": values[..., None]}[axes]
        source = DepthArray(saved(tmp_path / name, shaped), "disparity")
        assert (source.frames, source.height, source.width) == (7, 4, 6)
        got = np.stack(list(source.read([0, 2, 2, 5, 6])))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, values[[0, 2, 2, 5, 6]].astype(np.float32))

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("kind", ["disparity", "depth"])
    def test_near_comes_out_black(self, tmp_path: Path, truth: np.ndarray, name: str, kind: str) -> None:
        with np.errstate(divide="ignore"):
            values = truth if kind == "disparity" else 1 / truth
        raw_depth = copy_depth(DepthArray(saved(tmp_path / name, values), kind), tmp_path / "copy.npy", FPS)
        assert raw_depth.kind == kind
        assert_near_is_black(raw_depth, truth, tmp_path)

    @pytest.mark.parametrize("kind", ["disparity", "depth"])
    def test_a_plain_array_is_used_in_place(self, tmp_path: Path, truth: np.ndarray, kind: str) -> None:
        with np.errstate(divide="ignore"):
            path = saved(tmp_path / "d.npy", truth if kind == "disparity" else 1 / truth)
        raw_depth = DepthArray(path, kind).raw_depth(FPS)
        assert raw_depth == RawDepth(path, kind, LENGTH, HEIGHT, WIDTH, FPS)
        assert_near_is_black(raw_depth, truth, tmp_path)

    @pytest.mark.parametrize(
        ("name", "array"),
        [
            ("d.npy", np.ones((7, 4, 6))),
            ("d.npy", np.ones((7, 4, 6), ">f4")),
            ("d.npy", np.ones((7, 1, 4, 6), np.float32)),
            ("d.npz", np.ones((7, 4, 6), np.float32)),
            ("d.safetensors", np.ones((7, 4, 6), np.float32)),
        ],
    )
    def test_others_must_be_copied(self, tmp_path: Path, name: str, array: np.ndarray) -> None:
        source = DepthArray(saved(tmp_path / name, array), "disparity")
        assert source.raw_depth(FPS) is None
        np.testing.assert_array_equal(np.stack(list(source.read(range(7)))), np.ones((7, 4, 6)))

    def test_bfloat16(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        values = torch.rand(3, 4, 6).bfloat16()
        save_file({"x": values}, tmp_path / "d.safetensors")
        got = np.stack(list(DepthArray(tmp_path / "d.safetensors", "depth").read(range(3))))
        np.testing.assert_array_equal(got, values.float().numpy())

    @pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
    def test_which_array(self, tmp_path: Path, suffix: str) -> None:
        one, two = np.full((3, 4, 6), 1, np.float32), np.full((3, 4, 6), 2, np.float32)

        def first(kind: str, **arrays: np.ndarray) -> float:
            (name, array), *others = arrays.items()
            path = saved(tmp_path / f"d{suffix}", array, name, **dict(others))
            return float(next(DepthArray(path, kind).read([0]))[0, 0])

        assert first("depth", depth=one, disparity=two) == 1
        assert first("disparity", depth=one, disparity=two) == 2
        assert first("disparity", depth=one, rgb=two) == 1
        assert first("disparity", whatever=two) == 2
        with pytest.raises(ValueError, match=r"holds 2 arrays \(.*\): name the one to read 'depth' or 'disparity'"):
            first("depth", a=one, b=two)

    @pytest.mark.parametrize("name", FILES)
    def test_shapes(self, tmp_path: Path, name: str) -> None:
        for shape in ((4, 6), (3, 4, 6, 3), (0, 4, 6), (2, 1, 4, 6, 1)):
            with pytest.raises(ValueError, match=r"holds an array \[.*\]: expected \[frames, height, width\]"):
                DepthArray(saved(tmp_path / name, np.zeros(shape, np.float32)), "depth")

    def test_pickles_are_never_read(self, tmp_path: Path) -> None:
        objects = np.empty((2, 2, 2), object)
        objects[:] = [[[print] * 2] * 2] * 2
        np.save(tmp_path / "d.npy", objects, allow_pickle=True)
        np.savez(tmp_path / "d.npz", objects)
        for name in ("d.npy", "d.npz"):
            with pytest.raises(ValueError, match=f"{name} holds object: only numbers are read, never pickled objects"):
                DepthArray(tmp_path / name, "depth")

    def test_order(self, tmp_path: Path) -> None:
        np.save(tmp_path / "d.npy", np.asfortranarray(np.zeros((3, 4, 6), np.float32)))
        with pytest.raises(ValueError, match="stored in Fortran order"):
            DepthArray(tmp_path / "d.npy", "depth")

    @pytest.mark.parametrize("name", FILES)
    def test_cut_off(self, tmp_path: Path, name: str) -> None:
        path = saved(tmp_path / name, np.random.default_rng(0).random((50, 20, 20)).astype(np.float32))
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ValueError, match=f"{name}.*incomplete"):
            DepthArray(path, "depth")

    def test_damage_inside(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "packed.npz", np.random.default_rng(0).random((50, 20, 20)).astype(np.float32))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        with pytest.raises(ValueError, match="packed.npz is damaged: copy it again"):
            list(DepthArray(path, "disparity").read(range(50)))

    def test_a_packed_array_is_not_unpacked_to_be_looked_at(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = saved(tmp_path / "packed.npz", np.zeros((1000, 40, 40), np.float32))
        taken = 0
        read = zipfile.ZipExtFile.read

        def counting(self: zipfile.ZipExtFile, count: int = -1) -> bytes:
            nonlocal taken
            data = read(self, count)
            taken += len(data)
            return data

        monkeypatch.setattr(zipfile.ZipExtFile, "read", counting)
        source = DepthArray(path, "disparity")
        assert taken < 1000
        next(source.read([0]))
        assert taken < 3 * 40 * 40 * 4

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="none.npy: there is no such file"):
            DepthArray(tmp_path / "none.npy", "depth")
        (tmp_path / "d.exr").write_bytes(b"")
        with pytest.raises(ValueError, match="d.exr is no array file: give .npy, .npz, .safetensors"):
            DepthArray(tmp_path / "d.exr", "depth")
        with pytest.raises(ValueError, match="kind 'near' is not one of disparity, depth"):
            DepthArray(tmp_path / "d.exr", "near")
        for name in ("d.npy", "d.npz", "d.safetensors"):
            (tmp_path / name).write_bytes(b"something else entirely")
            with pytest.raises(ValueError, match=f"{name} is no "):
                DepthArray(tmp_path / name, "depth")
