"""What does not fit is refused by name before anything is sampled, and every known file layout loads to the same network."""

import json
import math
from dataclasses import replace
from pathlib import Path

import comfy.sd
import comfy.taesd.taesd
import comfyui_version
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from devtools.tiny import randomize
from longvie_core.backends import comfy as backend
from longvie_core.model.clip import HistorySettings
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control
from longvie_core.model.wan import WanConfig, WanModel
from tests.helpers.harness import Rig, evaluate, ksampler, make_clip, make_sample

# MODEL


def test_a_model_that_is_not_wan(tiny: Rig) -> None:
    other = ModelPatcher(nn.ModuleDict({"diffusion_model": nn.Linear(2, 2)}), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"this MODEL is a Linear: .*Wan 2\.1 image-to-video"):
        backend.apply_control(other, tiny.control)


def test_a_text_to_video_model(tiny: Rig) -> None:
    net = randomize(WanModel(WanConfig(dim=256, ffn_dim=64, num_heads=2, num_layers=4, in_dim=16, has_image_input=False)), 5)
    model = comfy.sd.load_diffusion_model_state_dict(net.state_dict())
    with pytest.raises(ValueError, match=r"takes 16 input channels: .*36 .*Wan2\.1-I2V-14B"):
        backend.apply_control(model, tiny.control)


def test_a_model_that_is_controlled_already(tiny: Rig) -> None:
    with pytest.raises(ValueError, match="carries LongVie control already"):
        backend.apply_control(tiny.controlled(), tiny.control)


def test_a_model_patch_of_another_kind(tiny: Rig) -> None:
    other = ModelPatcher(nn.Linear(2, 2), torch.device("cpu"), torch.device("cpu"))
    for patch in (other, None, object()):
        with pytest.raises(ValueError, match="no LongVie control network: load it with 'LongVie Load Control'"):
            backend.apply_control(tiny.model, patch)


@pytest.mark.parametrize(
    ("config", "metadata", "text"),
    [
        (DualControlConfig(512, 128, 64, 1, 2, image=False), {}, "width 512 against 256"),
        (DualControlConfig(256, 128, 64, 2, 2, image=False), {"head_dim": 64}, "head width 64 against 128"),
        (DualControlConfig(256, 128, 64, 1, 5, image=False), {}, "5 controlled blocks against 4 in all"),
        (DualControlConfig(256, 128, 64, 1, 2, image=True), {}, "image branch True against False"),
    ],
    ids=["width", "heads", "layers", "image branch"],
)
def test_a_control_network_for_another_backbone(
    tiny: Rig, tmp_path: Path, config: DualControlConfig, metadata: dict, text: str
) -> None:
    path = tmp_path / "other.safetensors"
    save_file(torch_dual_control(config).state_dict(), path, {"config": json.dumps(metadata)})
    with pytest.raises(ValueError, match=rf"do not fit: {text}\. Use the pair that belongs together"):
        backend.apply_control(tiny.model, backend.load_control(path))


def test_all_that_differs_is_named(tiny: Rig) -> None:
    config = DualControlConfig(512, 128, 64, 2, 5, image=True)
    with pytest.raises(ValueError, match="width 512 .*head width 64 .*image branch True .*5 controlled blocks"):
        backend.check_fit(tiny.model.model.diffusion_model, config)


def test_an_image_branch_needs_clip_vision(tiny: Rig, tiny_image: Rig, vae: object) -> None:
    sampler, sigmas = None, torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"connect CLIP vision \(clip_vision_h\)"):
        backend.MultimodalSampler(tiny_image.controlled(), vae, None, sampler, sigmas, 1.0)
    backend.MultimodalSampler(tiny_image.controlled(), vae, object(), sampler, sigmas, 1.0)
    backend.MultimodalSampler(tiny.controlled(), vae, None, sampler, sigmas, 1.0)


def test_an_older_host(tiny: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui_version, "__version__", "0.29.1")
    with pytest.raises(RuntimeError, match=r"needs ComfyUI 0\.30\.0 .*this is 0\.29\.1"):
        backend.apply_control(tiny.model, tiny.control)


def test_the_versions_that_do(tiny: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.30.0", "0.30.2", "0.31.0", "1.0.0"):
        monkeypatch.setattr(comfyui_version, "__version__", version)
        backend.require_host()


# Settings


@pytest.mark.parametrize(("start", "end"), [(0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0), (0.0, math.nan)])
def test_ranges_out_of_order(start: float, end: float) -> None:
    with pytest.raises(ValueError, match=r"control range .* is not within 0 \.\. 1 with start before end"):
        backend.ModalityRange(1.0, start, end)


@pytest.mark.parametrize("frames", [-1, 18])
def test_history_lengths(frames: int) -> None:
    with pytest.raises(ValueError, match=rf"history of {frames} frames is outside 0 \.\. 17"):
        HistorySettings(frames)


@pytest.mark.parametrize("sigma", [-0.1, 1.1, math.nan])
def test_first_frame_sigmas(sigma: float) -> None:
    with pytest.raises(ValueError, match=r"first frame sigma .* is outside 0 \.\. 1"):
        HistorySettings(first_frame_sigma=sigma)


@pytest.mark.parametrize("size", [(3, 6, 4), (5, 4, 6)], ids=["turned by 90 degrees", "longer"])
@pytest.mark.parametrize("name", ["dense", "sparse"])
def test_control_of_another_size_than_the_latent(tiny: Rig, name: str, size: tuple[int, int, int]) -> None:
    """The latent was changed behind Apply Control. Turned by 90 degrees it has as many tokens: nothing else would notice."""
    clip = replace(make_clip((3, 4, 6)), **{name: getattr(make_clip(size), name)})
    with pytest.raises(ValueError, match=rf"{name}.*{', '.join(map(str, size))}.*3, 4, 6"):
        ksampler(tiny.controlled(), clip, steps=1)


def test_history_of_another_size_than_the_latent(tiny: Rig) -> None:
    clip = replace(make_clip((3, 4, 6)), history=make_clip((3, 6, 4), history=2).history)
    with pytest.raises(ValueError, match=r"history.*6, 4.*4, 6"):
        ksampler(tiny.controlled(), clip, steps=1)


# VAE


def image_vae() -> comfy.sd.VAE:
    """The host's tiny autoencoder for Stable Diffusion."""
    return comfy.sd.VAE(sd=randomize(comfy.taesd.taesd.TAESD(latent_channels=4), 6).state_dict())


def test_an_image_vae(tiny: Rig) -> None:
    codec = backend.VaeCodec(image_vae(), tiny.model)
    frame = np.zeros((32, 48, 3), dtype=np.uint8)
    for encode in (lambda: codec.encode([frame] * 5), lambda: codec.encode_image(frame, 5)):
        with pytest.raises(ValueError, match=r"gives latents of shape \[5, 4, 4, 6\]: LongVie needs the Wan 2\.1 video VAE"):
            encode()


# Control files


def control_weights(rig: Rig) -> dict[str, Tensor]:
    return load_file(rig.control_file)


def kijai(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The repack hangs the control blocks below the backbone's blocks, and the rest below ``dual_controller``."""
    repacked = {}
    for key, value in weights.items():
        module, _, rest = key.partition(".")
        if module in ("control_blocks_dense", "control_blocks_sparse", "control_combine_linears"):
            layer, _, rest = rest.partition(".")
            repacked[f"blocks.{layer}.{module}.{rest}"] = value
        else:
            repacked[f"dual_controller.{key}"] = value
    return repacked


def prefixed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"pipe.dual_controller.{key}": value for key, value in weights.items()}


@pytest.mark.parametrize("layout", [prefixed, kijai])
def test_every_layout_loads_to_the_same_network(rig: Rig, tmp_path: Path, layout) -> None:
    path = tmp_path / "control.safetensors"
    save_file(layout(control_weights(rig)), path)
    control = backend.load_control(path)
    official = rig.control.model.state_dict()
    loaded = control.model.state_dict()
    assert loaded.keys() == official.keys() == control_weights(rig).keys()
    assert all(torch.equal(value, official[key]) for key, value in loaded.items())
    assert control.model.config == rig.control.model.config
    sample = make_sample(rig, history=2)
    ours = evaluate(backend.apply_control(rig.model, control), sample)
    assert torch.equal(ours, evaluate(rig.controlled(), sample))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_control_weights_keep_their_dtype(tiny: Rig, tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "control.safetensors"
    rounded = {key: value.to(dtype) for key, value in control_weights(tiny).items()}
    save_file(rounded, path)
    control = backend.load_control(path)
    assert {value.dtype for value in control.model.state_dict().values()} == {dtype}
    tiny_rounded = torch_dual_control(tiny.plain_control.config)
    tiny_rounded.load_state_dict({key: value.float() for key, value in rounded.items()})
    rig = Rig(tiny.backbone_file, path, tiny.model, control, tiny.plain, tiny_rounded)
    sample = make_sample(rig, history=2)
    assert (evaluate(rig.controlled(), sample) - rig.velocity(sample)).abs().max() < 1e-4


def test_a_text_page_in_place_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "control.safetensors"
    path.write_text("<!DOCTYPE html><html><body>Please log in</body></html>")
    with pytest.raises(ValueError, match=r"control\.safetensors is not a readable safetensors file .*fetch it again"):
        backend.load_control(path)


def test_a_broken_download(tiny: Rig, tmp_path: Path) -> None:
    path = tmp_path / "control.safetensors"
    path.write_bytes(tiny.control_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"control\.safetensors is not a readable safetensors file"):
        backend.load_control(path)


def test_a_file_that_is_not_there_or_a_pickle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"control\.safetensors does not exist"):
        backend.load_control(tmp_path / "control.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "control.pt")
    with pytest.raises(ValueError, match=r"control\.pt is not a \.safetensors file"):
        backend.load_control(tmp_path / "control.pt")


def test_keys_that_are_missing_too_many_or_wrong(tiny: Rig, tmp_path: Path) -> None:
    path = tmp_path / "control.safetensors"
    key = "control_blocks_sparse.1.self_attn.q.weight"
    weights = control_weights(tiny)

    def refused(changed: dict[str, Tensor], text: str) -> None:
        save_file(changed, path)
        with pytest.raises(ValueError, match=text):
            backend.load_control(path)

    refused({name: value for name, value in weights.items() if name != key}, rf"missing \(1\): {key}")
    refused({**weights, "control_blocks_dense.0.extra": torch.zeros(1)}, r"unexpected \(1\): control_blocks_dense\.0\.extra")
    refused({**weights, key: torch.zeros(128, 64)}, rf"wrong shape \(1\): {key} \[128, 64\] instead of \[128, 128\]")
    refused({**weights, f"pipe.dual_controller.{key}": weights[key].clone()}, f"holds {key} twice")
    refused(load_file(tiny.backbone_file), "holds no LongVie control network")


# Overlay


def test_an_overlay_for_another_backbone(tiny: Rig, tiny_image: Rig, tmp_path: Path) -> None:
    attention = {key: value for key, value in tiny_image.weights.items() if ".self_attn." in key}
    save_file(attention, tmp_path / "dit.safetensors")
    with pytest.raises(ValueError, match=r"dit\.safetensors does not fit: missing \(10\): blocks\.3\.self_attn\.k\.bias"):
        backend.apply_overlay(tiny.model, tmp_path / "dit.safetensors")
    with pytest.raises(ValueError, match=r"does not fit: .*unexpected"):
        backend.apply_overlay(tiny.model, tiny.control_file)
    save_file(tiny.weights, tmp_path / "whole.safetensors")
    with pytest.raises(ValueError, match=r"does not fit: unexpected .*blocks\.0\.cross_attn"):
        backend.apply_overlay(tiny.model, tmp_path / "whole.safetensors")
