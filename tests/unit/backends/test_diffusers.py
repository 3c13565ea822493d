"""The diffusers backend against plain torch and against diffusers' own converters, and generation without ComfyUI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from devtools.tiny import randomize
from longvie_core import checkpoint, generate
from longvie_core.backends import diffusers as backend
from longvie_core.backends.diffusers.blocks import adapt_backbone
from longvie_core.backends.diffusers.sampler import check_fit
from longvie_core.backends.diffusers.weights import original_state
from longvie_core.control.clips_folder import write_clips_folder
from longvie_core.media.probe import probe
from longvie_core.model.conditioning import history_input, pixels_from_uint8
from longvie_core.model.dual_control import DualControlConfig, Strengths, torch_dual_control
from longvie_core.model.dual_control import velocity as plain_velocity
from longvie_core.model.noise import gaussian
from longvie_core.model.wan import WanConfig, WanModel
from longvie_core.run.store import Run
from longvie_core.weights.backbone import backbone_shapes, diffusers_backbone_config, read_backbone
from longvie_core.weights.convert import convert
from longvie_core.weights.files import DIFFUSERS_WEIGHTS, read_weights
from longvie_core.weights.layouts import BACKBONE as BACKBONE_NAMES
from longvie_core.weights.overlay import overlay_shapes
from tests.helpers.places import ROOT

TOLERANCE = 2e-5
BACKBONE = WanConfig(dim=48, ffn_dim=64, num_heads=4, num_layers=3, text_dim=16, freq_dim=32, has_image_input=False)
CONTROL = DualControlConfig(dim=48, control_dim=24, ffn_dim=32, num_heads=2, num_layers=2, image=False)
HEADS = {"config": json.dumps({"transformer": {"num_heads": 4}})}
HEAD_DIM = {"config": json.dumps({"head_dim": 12})}


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["without image branch", "with image branch"])
def nets(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    return write_nets(tmp_path_factory.mktemp("nets"), image=request.param)


def write_nets(folder: Path, image: bool):
    """(plain backbone, plain control, backbone file, control file) with the same seeded weights."""
    plain = randomize(WanModel(replace(BACKBONE, has_image_input=image)), 1)
    control = randomize(torch_dual_control(replace(CONTROL, image=image)), 2)
    files = folder / "backbone.safetensors", folder / "control.safetensors"
    for net, file, metadata in zip((plain, control), files, (HEADS, HEAD_DIM), strict=True):
        save_file({key: value.contiguous() for key, value in net.state_dict().items()}, file, metadata)
    return plain, control, *files


def write_vae(path: Path) -> Path:
    """A tiny Wan 2.1 VAE with the original key names."""
    net = randomize(AutoencoderKLWan(base_dim=8), 3)
    save_file({key: value.contiguous() for key, value in original_state(net).items()}, path)
    return path


def sample(image: bool, history: int = 2, batch: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, Tensor | None]:
    """Seeded inputs of one evaluation, as ``backend.velocity`` names them; a batch differs in everything."""
    values = {
        "latents": gaussian(1, (batch, 16, 3, 4, 6)),
        "timestep": 700.5 - 300 * torch.arange(batch),
        "text": gaussian(2, (batch, 7, 16)),
        "condition": gaussian(3, (batch, 20, 3, 4, 6)),
        "dense": gaussian(4, (batch, 36, 3, 4, 6)),
        "sparse": gaussian(5, (batch, 36, 3, 4, 6)),
        "history": gaussian(6, (batch, 16, history, 4, 6)) if history else None,
        "clip_features": gaussian(7, (batch, 257, 1280)) if image else None,
    }
    return {key: value if value is None or key == "timestep" else value.to(dtype) for key, value in values.items()}


def by_plain_torch(plain, control, given: dict, strengths: Strengths | None = None) -> Tensor:
    return plain_velocity(
        plain,
        control,
        torch.cat([given["latents"], given["condition"]], dim=1),
        given["timestep"],
        given["text"],
        given["clip_features"],
        given["dense"],
        given["sparse"],
        None if given["history"] is None else history_input(given["history"]),
        strengths,
    )


def largest(difference: Tensor) -> float:
    return difference.detach().abs().max().item()


# The forward


@pytest.mark.parametrize("history", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 2])
def test_velocity_equals_plain_torch(nets, history: int, batch: int) -> None:
    plain, control, backbone_file, control_file = nets
    given = sample(plain.config.has_image_input, history, batch)
    ours = backend.velocity(backend.load_backbone(backbone_file), backend.load_control(control_file), **given)
    assert largest(ours - by_plain_torch(plain, control, given)) < TOLERANCE
    assert largest(ours - by_plain_torch(plain, None, given)) > 0.01  # the control acts


@pytest.mark.parametrize("absent", ["dense", "sparse"])
def test_an_absent_modality_is_one_at_strength_zero(nets, absent: str) -> None:
    plain, control, backbone_file, control_file = nets
    given = sample(plain.config.has_image_input)
    expected = by_plain_torch(plain, control, given, Strengths(**{absent: 0.0}))
    backbone, net = backend.load_backbone(backbone_file), backend.load_control(control_file)
    assert largest(backend.velocity(backbone, net, **{**given, absent: None}) - expected) < TOLERANCE
    at_zero = backend.velocity(backbone, net, **given, strengths=Strengths(**{absent: 0.0}))
    assert largest(at_zero - expected) < TOLERANCE


def test_strengths_weigh_the_streams(nets) -> None:
    plain, control, backbone_file, control_file = nets
    given, strengths = sample(plain.config.has_image_input), Strengths(0.3, 1.7)
    ours = backend.velocity(
        backend.load_backbone(backbone_file), backend.load_control(control_file), **given, strengths=strengths
    )
    assert largest(ours - by_plain_torch(plain, control, given, strengths)) < TOLERANCE


def test_without_control_it_is_the_backbone_alone(nets) -> None:
    plain, control, backbone_file, control_file = nets
    given = sample(plain.config.has_image_input)
    backbone, net = backend.load_backbone(backbone_file), backend.load_control(control_file)
    alone = backend.velocity(backbone, None, **given)
    assert torch.equal(backend.velocity(backbone, net, **{**given, "dense": None, "sparse": None}), alone)
    assert torch.equal(backend.velocity(backbone, net, **given, strengths=Strengths(0, 0)), alone)
    assert largest(alone - by_plain_torch(plain, None, given)) < TOLERANCE


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_plain_torch(nets, checkpointing: bool) -> None:
    """Of the control network, of the backbone's self-attention and of the history."""
    plain, control, backbone_file, control_file = nets
    backbone, net = backend.load_backbone(backbone_file).train(), backend.load_control(control_file).train()
    if checkpointing:
        backbone.enable_gradient_checkpointing()
    grads = []
    for evaluate, networks in (
        (by_plain_torch, (plain, control)),
        (lambda *networks_and_given: backend.velocity(*networks_and_given[:2], **networks_and_given[2]), (backbone, net)),
    ):
        for network in networks:
            network.zero_grad()
        given = sample(plain.config.has_image_input)
        given["history"].requires_grad_()
        evaluate(*networks, given).square().mean().backward()
        grads.append({"history": given["history"].grad})
        grads[-1] |= {key: value.grad for key, value in networks[1].named_parameters()}
        names = networks[0].named_parameters()
        to_original = BACKBONE_NAMES.to_original if networks[0] is backbone else str
        grads[-1] |= {to_original(key): value.grad for key, value in names}
    theirs, ours = grads
    assert theirs.keys() == ours.keys()
    scale = max(value.abs().max().item() for value in theirs.values())
    for key, value in theirs.items():
        assert ours[key] is not None and largest(ours[key] - value) < 1e-5 * scale, key


def test_checkpointing_changes_no_bit(nets) -> None:
    """With a frozen backbone, as stages 1 and 2 train: the control network's gradients alone."""
    plain, _, backbone_file, control_file = nets
    backbone, net = backend.load_backbone(backbone_file).requires_grad_(False).train(), backend.load_control(control_file)
    given = sample(plain.config.has_image_input)
    grads = []
    for enable in (backbone.disable_gradient_checkpointing, backbone.enable_gradient_checkpointing):
        enable()
        net.zero_grad()
        backend.velocity(backbone, net, **given).square().mean().backward()
        grads.append([value.grad.clone() for value in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_hooks_are_gone_even_after_an_error(nets) -> None:
    plain, _, backbone_file, control_file = nets
    backbone, net = backend.load_backbone(backbone_file), backend.load_control(control_file)
    given = sample(plain.config.has_image_input)
    with pytest.raises(RuntimeError):
        backend.velocity(backbone, net, **{**given, "text": given["text"][..., :3]})
    backend.velocity(backbone, net, **given)
    assert not any(block._forward_hooks for block in backbone.blocks)


def test_bfloat16_keeps_what_diffusers_keeps_in_float32(nets) -> None:
    plain, control, backbone_file, control_file = nets
    backbone = backend.load_backbone(backbone_file, dtype=torch.bfloat16)
    dtypes = {key: value.dtype for key, value in backbone.state_dict().items()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == dtypes["patch_embedding.weight"] == torch.bfloat16
    kept = ("blocks.0.scale_shift_table", "blocks.0.norm2.weight", "condition_embedder.time_embedder.linear_1.weight")
    assert all(dtypes[key] == torch.float32 for key in kept)
    given = sample(plain.config.has_image_input, dtype=torch.bfloat16)
    ours = backend.velocity(backbone, backend.load_control(control_file, dtype=torch.bfloat16), **given)
    exact = by_plain_torch(plain, control, sample(plain.config.has_image_input))
    assert ours.dtype == torch.bfloat16 and largest(ours.float() - exact) < 0.1 * exact.abs().max().item()


def test_missing_features_and_foreign_networks_are_named(tmp_path: Path) -> None:
    _, _, backbone_file, control_file = write_nets(tmp_path, image=True)
    backbone, net = backend.load_backbone(backbone_file), backend.load_control(control_file)
    with pytest.raises(ValueError, match="CLIP vision"):
        backend.velocity(backbone, net, **{**sample(True), "clip_features": None})
    with pytest.raises(ValueError, match="width 64 against 48.*image branch False against True.*5 controlled blocks"):
        config = replace(CONTROL, dim=64, control_dim=32, num_heads=2, num_layers=5)
        check_fit(backbone, torch_dual_control(config))
    (tmp_path / "text").mkdir()
    _, _, text_to_video, _ = write_nets(tmp_path / "text", image=False)
    small = WanTransformer3DModel(**diffusers_backbone_config(replace(BACKBONE, in_dim=16)))
    with pytest.raises(ValueError, match="takes 16 input channels"):
        check_fit(small, net)


def test_overlay_replaces_self_attention_alone(nets, tmp_path: Path) -> None:
    plain, _, backbone_file, _ = nets
    overlay = {key: torch.full(shape, 0.5) for key, shape in overlay_shapes(BACKBONE.num_layers, BACKBONE.dim).items()}
    save_file(overlay, tmp_path / "dit.safetensors")
    state = original_state(backend.load_backbone(backbone_file, tmp_path / "dit.safetensors"))
    for key, value in plain.state_dict().items():
        assert torch.equal(state[key], overlay.get(key, value)), key


# Conversion


def test_conversion_there_and_back_is_bit_equal(nets, tmp_path: Path) -> None:
    *_, backbone_file, _ = nets
    vae_file = write_vae(tmp_path / "vae.safetensors")
    for name, file in (("backbone", backbone_file), ("vae", vae_file)):
        assert checkpoint.main(["convert", str(file), str(tmp_path / name)]) == 0
        assert checkpoint.main(["convert", str(tmp_path / name), str(tmp_path / f"{name}_back.safetensors")]) == 0
        assert (tmp_path / f"{name}_back.safetensors").read_bytes() == file.read_bytes()


def test_names_are_those_of_diffusers_own_converters(nets, tmp_path: Path) -> None:
    *_, backbone_file, _ = nets
    for file, theirs in (
        (backbone_file, convert_wan_transformer_to_diffusers),
        (write_vae(tmp_path / "vae.safetensors"), convert_wan_vae_to_diffusers),
    ):
        convert(file, tmp_path / file.stem)
        ours = load_file(tmp_path / file.stem / DIFFUSERS_WEIGHTS)
        expected = theirs(load_file(file))
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[key], value) for key, value in expected.items())


def test_diffusers_opens_what_was_converted(nets, tmp_path: Path) -> None:
    plain, control, backbone_file, control_file = nets
    convert(backbone_file, tmp_path / "transformer")
    opened = adapt_backbone(WanTransformer3DModel.from_pretrained(tmp_path / "transformer", local_files_only=True))
    ours = backend.load_backbone(backbone_file)
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in opened.state_dict().items())
    given = sample(plain.config.has_image_input)
    theirs = backend.velocity(opened, backend.load_control(control_file), **given)
    assert largest(theirs - by_plain_torch(plain, control, given)) < TOLERANCE
    convert(write_vae(tmp_path / "vae.safetensors"), tmp_path / "vae")
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae", local_files_only=True)
    ours = backend.load_vae(tmp_path / "vae.safetensors").state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in vae.state_dict().items())


def test_a_folder_in_shards_is_read(nets, tmp_path: Path) -> None:
    """As diffusers saves large models; the number of heads comes from its config."""
    plain, _, backbone_file, _ = nets
    backend.load_backbone(backbone_file).save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    convert(tmp_path / "transformer", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == plain.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in plain.state_dict().items())
    config, _ = read_backbone(tmp_path / "back.safetensors")
    assert config == plain.config


def test_every_key_of_the_14b_backbone_has_its_place_in_diffusers() -> None:
    with torch.device("meta"):
        theirs = WanTransformer3DModel(**diffusers_backbone_config(WanConfig())).state_dict()
    ours = backbone_shapes(WanConfig())
    assert {BACKBONE_NAMES.to_diffusers(key): shape for key, shape in ours.items()} == {
        key: tuple(value.shape) for key, value in theirs.items()
    }


def test_nothing_is_overwritten(nets, tmp_path: Path) -> None:
    *_, backbone_file, _ = nets
    convert(backbone_file, tmp_path / "transformer")
    with pytest.raises(ValueError, match="is not empty"):
        convert(backbone_file, tmp_path / "transformer")
    weights = tmp_path / "transformer" / DIFFUSERS_WEIGHTS
    with pytest.raises(ValueError, match="is the source itself"):
        convert(weights, weights)


def test_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = tmp_path / f"{DIFFUSERS_WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"proj_out.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="file names beside it"):
        read_weights(tmp_path)


def test_conversion_refuses_by_name(nets, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    *_, backbone_file, control_file = nets
    weights = load_file(backbone_file)
    save_file({**weights, "img_emb.emb_pos": torch.zeros(1)}, tmp_path / "flf.safetensors", HEADS)
    save_file({key: value for key, value in weights.items() if "ffn.2" not in key}, tmp_path / "cut.safetensors", HEADS)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for source, out, message in (
        (backbone_file, "new.safetensors", "give the name of a folder"),
        (tmp_path / "flf.safetensors", "new", "img_emb.emb_pos"),
        (tmp_path / "cut.safetensors", "new", "blocks.0.ffn.2.bias"),
        (tmp_path / "other.safetensors", "new", "neither a Wan backbone nor a Wan 2.1 VAE"),
        (control_file, "new", "neither a Wan backbone nor a Wan 2.1 VAE"),
        (tmp_path / "none.safetensors", "new", "does not exist"),
        (tmp_path, "new.safetensors", "config.json does not exist"),
    ):
        assert checkpoint.main(["convert", str(source), str(tmp_path / out)]) == 1
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("new*"))


# Encoders


def test_vae_codec_normalises_by_the_published_statistics(tmp_path: Path) -> None:
    codec = backend.VaeCodec(backend.load_vae(write_vae(tmp_path / "vae.safetensors")))
    frames = np.random.default_rng(0).integers(0, 256, (8, 16, 32, 3), dtype=np.uint8)
    latents = codec.encode(frames)
    assert latents.shape == (1, 16, 2, 2, 4)
    assert torch.equal(latents, codec.encode(frames[:5]))  # of 8 frames 5 count
    pixels = torch.from_numpy(pixels_from_uint8(frames[:5])).permute(3, 0, 1, 2)[None]
    with torch.no_grad():
        raw = codec.vae.encode(pixels).latent_dist.mean
    assert torch.allclose(latents[0, 3, 0, 0, 0], (raw[0, 3, 0, 0, 0] - 0.1075) / 2.6558, atol=1e-6)
    assert torch.allclose(codec.denormalised(latents), raw, atol=1e-5)
    decoded = codec.decode(raw)
    assert decoded.shape == (5, 16, 32, 3) and decoded.dtype == np.float32 and abs(decoded).max() <= 1
    assert np.allclose(decoded, codec.decode_pixels(latents)[0].permute(1, 2, 3, 0).numpy(), atol=1e-4)
    one = codec.encode_first_frame(frames[0], 5)
    grey = np.concatenate([pixels[0].permute(1, 2, 3, 0)[:1].numpy(), np.zeros((4, 16, 32, 3), np.float32)])
    assert torch.equal(one, codec.encode_pixels(torch.from_numpy(grey).permute(3, 0, 1, 2)[None]))


def write_text_encoder(folder: Path, width: int) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "ball": 5}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder / "tokenizer")
    config = UMT5Config(vocab_size=8, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    randomize(UMT5EncoderModel(config), 5).save_pretrained(folder / "text_encoder")
    return folder


def test_text_is_zero_after_its_end_and_padding_is_not_attended(tmp_path: Path) -> None:
    encoder = backend.TextEncoder(write_text_encoder(tmp_path, 16))
    embedding = encoder("a  red\nball")
    assert embedding.shape == (1, 512, 16) and embedding.dtype == torch.float32
    assert embedding[:, 4:].abs().max() == 0 and embedding[:, :4].abs().amin(dim=-1).min() > 0
    with torch.no_grad():
        alone = encoder.model(torch.tensor([[3, 4, 5, 1]])).last_hidden_state
    assert torch.allclose(embedding[:, :4], alone, atol=1e-5)
    assert torch.equal(embedding, encoder("a red ball"))


def test_clip_vision_gives_the_last_block_but_one(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=224, patch_size=14
    )
    model = randomize(CLIPVisionModel(config), 6)
    model.save_pretrained(tmp_path / "image_encoder")
    frame = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    features = backend.ImageEncoder(tmp_path)(frame)
    assert features.shape == (1, 257, 32)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy((frame / 255 - mean) / std).float().permute(2, 0, 1)[None]
    captured = []
    layers = model.vision_model.encoder.layers if hasattr(model, "vision_model") else model.encoder.layers
    layers[1].register_forward_hook(lambda *args: captured.append(args[2]))
    with torch.no_grad():
        model(pixels)
    second = captured[0][0] if isinstance(captured[0], tuple) else captured[0]
    assert torch.allclose(features, second, atol=1e-4)


def test_encoders_are_named_when_they_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        backend.TextEncoder(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no"):
        backend.TextEncoder(tmp_path)
    with pytest.raises(ValueError, match="holds no image encoder"):
        backend.ImageEncoder(tmp_path)


# Generation


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny networks and two control clips of 9 frames."""
    folder = tmp_path_factory.mktemp("studio")
    write_nets(folder, image=False)
    write_vae(folder / "vae.safetensors")
    rng = np.random.default_rng(2)
    dense, sparse = rng.integers(0, 256, (2, 2, 9, 32, 48, 3), dtype=np.uint8)
    write_clips_folder(folder / "clips", ["a", "red"], dense, sparse, rng.integers(0, 256, (32, 48, 3), dtype=np.uint8))
    return folder


def run_command(studio: Path, run: Path, *options: str) -> int:
    networks = [f"--{name}={studio / name}.safetensors" for name in ("backbone", "control", "vae")]
    size = ["--width=48", "--height=32", "--steps=2", "--cfg=2"]
    return generate.main([str(run), *networks, *size, *options])


def clip_latents(run: Path) -> list[Tensor]:
    latents = []
    for take in Run(run).manifest.clips:
        with safe_open(run / take.latents.name, "pt") as file:
            latents.append(file.get_tensor("latent"))
    return latents


def test_a_run_that_is_interrupted_goes_on_and_equals_one_that_was_not(studio: Path, tmp_path: Path, capsys) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    clips = f"--clips={studio / 'clips'}"
    assert run_command(studio, whole, clips) == 0
    assert probe(whole / "whole_00001_.mp4").frames == 17
    assert run_command(studio, parts, clips, "--only=-1") == 0
    assert probe(parts / "parts_00001_.mp4").frames == 9
    capsys.readouterr()
    assert run_command(studio, parts, clips) == 0
    assert "kept 1 of 2 clips" in capsys.readouterr().out
    assert all(torch.equal(one, other) for one, other in zip(clip_latents(whole), clip_latents(parts), strict=True))
    assert not torch.equal(*clip_latents(whole))
    assert run_command(studio, parts, clips) == 0
    assert "kept 2 of 2 clips" in capsys.readouterr().out
    assert run_command(studio, parts, clips, "--dense-strength=0.5", "--only=1") == 0
    assert "clips 1 .. 1 are rendered again: strengths changed" in capsys.readouterr().out
    assert not torch.equal(clip_latents(whole)[0], clip_latents(parts)[0])
    assert run_command(studio, parts, clips) == 0
    assert "kept 2 of 2 clips" in capsys.readouterr().out, "the change is undone"
    assert sorted(path.name for path in parts.glob("parts_*.mp4")) == [f"parts_0000{number}_.mp4" for number in (1, 2, 3)]


def test_prompts_reach_the_model_through_umt5(studio: Path, tmp_path: Path) -> None:
    encoder = write_text_encoder(tmp_path / "wan", BACKBONE.text_dim)
    (tmp_path / "prompts.txt").write_text("a red ball\nball")
    clips = [f"--clips={studio / 'clips'}", "--only=1"]
    for name, options in (("folder", []), ("file", [f"--prompts={tmp_path / 'prompts.txt'}"])):
        assert run_command(studio, tmp_path / name, *clips, f"--text-encoder={encoder}", *options) == 0
    folder, file = (clip_latents(tmp_path / name)[0] for name in ("folder", "file"))
    assert not torch.equal(folder, file)
    assert len(list((tmp_path / "file" / "prompts").glob("*.safetensors"))) == 2  # one prompt and the negative one


def test_a_prompt_may_bring_its_clips_strengths(studio: Path, tmp_path: Path) -> None:
    schedules = {"plain": ["", ""], "own": ["", {"prompt": "", "dense_strength": 0.5}], "all": ["", ""]}
    for name, schedule in schedules.items():
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(schedule))
        options = ["--dense-strength=0.5"] if name == "all" else []
        assert run_command(studio, tmp_path / name, f"--clips={studio / 'clips'}", f"--prompts={file}", *options) == 0
    plain, own, everywhere = (clip_latents(tmp_path / name) for name in schedules)
    assert torch.equal(own[0], plain[0]) and not torch.equal(own[1], plain[1])
    assert not torch.equal(everywhere[0], own[0])


def test_raw_depth_is_normalised_over_the_whole_video(studio: Path, tmp_path: Path) -> None:
    disparity = np.random.default_rng(3).random((20, 32, 48), np.float32)
    np.save(tmp_path / "depth.npy", disparity)
    Image.fromarray(np.full((32, 48, 3), 90, np.uint8)).save(tmp_path / "first.png")
    run = tmp_path / "run"
    given = [f"--raw-depth={tmp_path / 'depth.npy'}", f"--first-frame={tmp_path / 'first.png'}", "--frames=9"]
    assert run_command(studio, run, *given) == 0
    assert probe(run / "run_00001_.mp4").frames == 17
    (dense,) = run.glob("dense_*.mkv")
    from longvie_core.media.read import read_frames

    low, high = np.percentile(disparity[:17], [5, 95])
    expected = ((high - disparity[7].clip(low, high)) / (high - low) * 255).astype(np.uint8)
    (seventh,) = read_frames(dense, [7])
    assert abs(seventh[..., 0].astype(int) - expected).max() <= 1
    assert run_command(studio, run, *given) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clips=none"], "there is no such folder"),
        ([], "no control is connected"),
        (["--sparse=CLIPS/track_00.mp4", "--frames=9"], "no first frame is given"),
        (["--clips=CLIPS", "--sparse=CLIPS/track_00.mp4"], "leave out --sparse"),
        (["--sparse=none.mp4"], "none.mp4"),
        (["--clips=CLIPS", "--only=9"], "outside the 2 clips"),
        (["--clips=CLIPS", "--width=50"], "not a multiple of 16"),
        (["--clips=CLIPS", "--history-frames=40"], "outside 0 .. 17"),
        (["--clips=CLIPS", "--steps=0"], "at least 1"),
        (["--clips=CLIPS", "--vae=none.safetensors"], "none.safetensors does not exist"),
        (["--clips=CLIPS", "--text-encoder=none"], "nothing is downloaded"),
        (["--clips=CLIPS", "--prompts=CLIPS/first.png"], "no UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named(studio: Path, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    options = [option.replace("CLIPS", str(studio / "clips")) for option in options]
    assert run_command(studio, tmp_path / "run", *options) == 1
    assert message in capsys.readouterr().err


def test_a_run_that_is_being_written_is_left_alone(studio: Path, tmp_path: Path, capsys) -> None:
    with Run(tmp_path / "run").locked():
        assert run_command(studio, tmp_path / "run", f"--clips={studio / 'clips'}") == 1
    assert "is being written by" in capsys.readouterr().err


# Several processes


PARALLEL = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
torch.set_grad_enabled(False)
# diffusers divides by it, in its older releases by the second
torch.accelerator.device_count = torch.get_device_module(torch._C._get_accelerator()).device_count = lambda: 1
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[3]), world_size=2)
from longvie_core.backends import diffusers as backend
given = torch.load(sys.argv[1], weights_only=True)
backbone, control = backend.load_backbone(Path(sys.argv[4])), backend.load_control(Path(sys.argv[5]))
expected = given.pop("expected")
backend.enable_context_parallel(backbone, control, ulysses_degree=2)
seen = []
backbone.blocks[0].register_forward_hook(lambda block, inputs, out: seen.append(out.shape[1]))
control.control_blocks_dense[0].register_forward_hook(lambda block, inputs, out: seen.append(out.shape[1]))
error = (backend.velocity(backbone, control, **given) - expected).abs().max().item()
print("RESULT", sorted(seen), error < 2e-5, flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_share_one_clip(tmp_path: Path) -> None:
    """diffusers' context parallelism on two CPU processes over gloo, each with half of the tokens."""
    plain, control, backbone_file, control_file = write_nets(tmp_path, image=False)
    given = {key: value for key, value in sample(False, history=1).items() if value is not None}
    expected = by_plain_torch(plain, control, {"clip_features": None, **given}).detach()
    torch.save({**given, "expected": expected}, tmp_path / "given.pt")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PARALLEL, tmp_path / "given.pt", tmp_path / "meet", str(rank), backbone_file, control_file],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        out, _ = process.communicate(timeout=180)
        # 4 latent frames of 6 tokens in the backbone and 3 in the control network, halved.
        assert "RESULT [9, 12] True" in out
