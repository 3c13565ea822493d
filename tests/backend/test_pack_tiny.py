"""LongVie-Tiny's files, packed from small exports, as the host opens them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import comfy.sd
import comfy.utils
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file, save_file

from devtools import pack_tiny
from devtools.tiny import BACKBONE_FILE, CONTROL_FILE, VAE_FILE, randomize
from longvie_core.backends.comfy.weights import load_control, wan_backbone
from longvie_core.model.conditioning import pixels_from_uint8
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control
from longvie_core.model.wan import WanConfig, WanModel
from longvie_core.training.tiny import TINY_BACKBONE, TINY_CONTROL

ALL = (BACKBONE_FILE, CONTROL_FILE, VAE_FILE)


def saved(path: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    """A file as the trainer exports it: bfloat16."""
    save_file({key: value.bfloat16().contiguous() for key, value in weights.items()}, path, metadata)
    return path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the trainer leaves, with random weights: backbone, overlay, control and VAE folder."""
    folder = tmp_path_factory.mktemp("exports")
    own, theirs = (randomize(WanModel(TINY_BACKBONE), seed).state_dict() for seed in (1, 2))
    overlay = {key: value for key, value in theirs.items() if ".self_attn." in key}
    control = randomize(torch_dual_control(TINY_CONTROL), 3).state_dict()
    vae = randomize(AutoencoderKLWan(base_dim=8), 4)
    vae.save_pretrained(folder / "vae")
    return {
        "backbone": saved(folder / "backbone.safetensors", own, {"config": '{"transformer": {"num_heads": 2}}'}),
        "overlay": saved(folder / "dit.safetensors", overlay),
        "control": saved(folder / "control.safetensors", control, {"config": '{"head_dim": 128}'}),
        "vae": folder / "vae",
    }


def packed(exports: dict[str, Path], out: Path, **changes: Path) -> int:
    """Run the command line; returns its exit code."""
    given = {**exports, **changes}
    return pack_tiny.main([part for name, path in given.items() for part in (f"--{name}", str(path))] + ["--out", str(out)])


@pytest.fixture(scope="module")
def models(exports: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed files."""
    out = tmp_path_factory.mktemp("packed")
    assert packed(exports, out) == 0
    return out


def test_the_host_opens_the_three_files(models: Path, exports: dict[str, Path]) -> None:
    backbone = wan_backbone(comfy.sd.load_diffusion_model(str(models / BACKBONE_FILE)))
    assert (backbone.dim, backbone.num_heads, len(backbone.blocks)) == (256, 2, 4)
    assert load_control(models / CONTROL_FILE).model.config == TINY_CONTROL
    vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(models / VAE_FILE)))
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    with torch.inference_mode():
        found = vae.encode(torch.from_numpy(frames).float() / 255)
        theirs = AutoencoderKLWan.from_pretrained(exports["vae"])
        pixels = torch.from_numpy(pixels_from_uint8(frames)).permute(3, 0, 1, 2)[None]
        wanted = theirs.encode(pixels).latent_dist.mode()
    # Not equal: the file has the weights in float16.
    assert float((found.cpu() - wanted).abs().max() / wanted.abs().max()) < 2e-2


def test_self_attention_is_the_overlays_and_all_else_the_backbones(models: Path, exports: dict[str, Path]) -> None:
    found = load_file(models / BACKBONE_FILE)
    own, overlay = load_file(exports["backbone"]), load_file(exports["overlay"])
    assert found.keys() == own.keys()
    for key, value in found.items():
        assert value.dtype == torch.float16
        assert torch.equal(value, (overlay if ".self_attn." in key else own)[key].half()), key
    control, theirs = load_file(models / CONTROL_FILE), load_file(exports["control"])
    assert control.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key].half()) for key, value in control.items())


def test_without_overlay_the_backbone_stays_as_it_is(exports: dict[str, Path], tmp_path: Path) -> None:
    assert packed({key: path for key, path in exports.items() if key != "overlay"}, tmp_path) == 0
    own = load_file(exports["backbone"])
    assert all(torch.equal(value, own[key].half()) for key, value in load_file(tmp_path / BACKBONE_FILE).items())


def test_equal_exports_give_equal_bytes(models: Path, exports: dict[str, Path], tmp_path: Path) -> None:
    assert packed(exports, tmp_path) == 0
    for file in ALL:
        first, second = (hashlib.sha256((folder / file).read_bytes()).digest() for folder in (models, tmp_path))
        assert first == second, file


def spoilt(exports: dict[str, Path], path: Path, value: float) -> Path:
    """The control network with one bad number."""
    weights = load_file(exports["control"])
    weights["control_combine_linears.1.weight"][3, 4] = value
    save_file(weights, path)
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e6], ids=["NaN", "infinity", "too large for float16"])
def test_numbers_that_are_not_finite_are_refused(
    value: float, exports: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert packed(exports, out, control=spoilt(exports, tmp_path / "control.safetensors", value)) == 1
    message = capsys.readouterr().err
    assert "longvie_tiny_control.safetensors: control_combine_linears.1.weight would hold NaN or infinity" in message
    assert list(out.iterdir()) == []  # none of the three


def large_backbone(_: dict[str, Path], folder: Path) -> dict[str, Path]:
    config = WanConfig(dim=256, ffn_dim=1536, num_heads=2, num_layers=5, has_image_input=False)
    return {"backbone": saved(folder / "large.safetensors", randomize(WanModel(config), 5).state_dict())}


def other_control(_: dict[str, Path], folder: Path) -> dict[str, Path]:
    config = DualControlConfig(dim=384, control_dim=128, ffn_dim=128, num_heads=1, num_layers=2, image=False)
    weights = randomize(torch_dual_control(config), 6).state_dict()
    return {"control": saved(folder / "other.safetensors", weights)}


def swapped(exports: dict[str, Path], _: Path) -> dict[str, Path]:
    return {"backbone": exports["control"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (large_backbone, "bytes together, more than 18,000,000"),
        (other_control, "control network and backbone do not fit: width 384 against 256"),
        (swapped, "control.safetensors is neither a Wan backbone nor a Wan 2.1 VAE"),
        (lambda *_: {"vae": Path("nowhere")}, "nowhere"),
    ],
    ids=["too large", "another width", "the wrong file", "no file"],
)
def test_what_cannot_be_shipped_is_refused(
    change: Callable[[dict[str, Path], Path], dict[str, Path]],
    message: str,
    exports: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    given = {key: path for key, path in exports.items() if key != "overlay"}
    assert packed(given, out, **change(exports, tmp_path)) == 1
    assert message in capsys.readouterr().err
    assert not out.exists() or list(out.iterdir()) == []
