"""Weight files: the published keys and shapes, files that must be refused by name, and the overlay merge."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from longvie_core.checkpoint import main
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control
from longvie_core.model.wan import WanConfig, WanModel
from longvie_core.weights import control as control_weights
from longvie_core.weights.control import canonical_control_key, control_shapes, read_control
from longvie_core.weights.header import WeightFile, read_header
from longvie_core.weights.overlay import merge_overlay, overlay_shapes, read_overlay
from tests.helpers.places import ROOT

PUBLISHED = json.loads((Path(__file__).parent / "data" / "longvie2_state_dict.json").read_text("utf-8"))
SMALL = DualControlConfig(dim=32, control_dim=16, ffn_dim=24, num_heads=2, num_layers=2)
SMALL_METADATA = {"config": '{"head_dim": 8}'}
BACKBONE = WanConfig(dim=32, ffn_dim=48, num_heads=2, num_layers=3, text_dim=12, freq_dim=16, has_image_input=False)
PREFIX = "model.diffusion_model."


def published(part: str) -> dict[str, tuple[int, ...]]:
    layers = PUBLISHED[part]["layers"]
    return {
        key.replace("{i}", str(layer)): tuple(shape)
        for key, shape in PUBLISHED[part]["shapes"].items()
        for layer in (range(layers) if "{i}" in key else [0])
    }


def small_control(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in control_shapes(SMALL).items()}


def repacked(key: str) -> str:
    """A published key in the layout of Kijai's file."""
    match = re.fullmatch(r"(control_blocks_dense|control_blocks_sparse|control_combine_linears)\.(\d+)\.(.+)", key)
    return f"blocks.{match[2]}.{match[1]}.{match[3]}" if match else f"dual_controller.{key}"


LAYOUTS: dict[str, Callable[[str], str]] = {
    "published": lambda key: key,
    "with prefix": lambda key: f"pipe.dual_controller.{key}",
    "repacked": repacked,
    "repacked under the host's prefix": lambda key: f"model.diffusion_model.{repacked(key)}",
}


def write_small(folder: Path, tensors: dict[str, Tensor], name: str = "control.safetensors") -> Path:
    path = folder / name
    save_file(tensors, path, metadata=SMALL_METADATA)
    return path


class TestPublishedFile:
    def test_the_list_itself(self) -> None:
        assert (len(published("control")), len(published("overlay"))) == (800, 400)
        assert sum(map(math.prod, published("control").values())) == 2_633_637_888

    def test_control_network_has_exactly_these_keys_and_shapes(self) -> None:
        with torch.device("meta"):
            network = torch_dual_control(DualControlConfig())
        assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == published("control")
        assert sum(parameter.numel() for parameter in network.parameters()) == 2_633_637_888
        assert control_shapes(DualControlConfig()) == published("control")

    def test_overlay_is_exactly_the_backbones_self_attention(self) -> None:
        assert overlay_shapes(40, 5120) == published("overlay")

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_config_at_real_size(self, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
        shapes = {LAYOUTS[layout](key): shape for key, shape in published("control").items()}
        file = WeightFile(Path("control.safetensors"), shapes, dict.fromkeys(shapes, "BF16"), {})
        monkeypatch.setattr(control_weights, "read_header", lambda path: file)
        config, found = read_control(file.path)
        assert config == DualControlConfig(5120, 2560, 6912, 20, 12, image=True)
        assert found.keys.keys() == published("control").keys()
        assert all(LAYOUTS[layout](key) == stored for key, stored in found.keys.items())


class TestControlFile:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_every_layout_gives_the_same_network(self, layout: str, tmp_path: Path) -> None:
        tensors = small_control()
        path = write_small(tmp_path, {LAYOUTS[layout](key): value for key, value in tensors.items()})
        config, found = read_control(path)
        assert config == SMALL
        loaded = dict(found.tensors())
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], value) for key, value in tensors.items())
        torch_dual_control(config).load_state_dict(loaded, strict=True)

    def test_a_network_without_image_branch(self, tmp_path: Path) -> None:
        tensors = {key: value for key, value in small_control().items() if "_img" not in key}
        config, _ = read_control(write_small(tmp_path, tensors))
        assert not config.image and config.num_layers == 2

    @pytest.mark.parametrize(
        "key",
        [
            "control_blocks_sparse.1.ffn.2.bias",
            "control_combine_linears.0.weight",
            "control_blocks_dense.0.cross_attn.k_img.bias",
            "control_t_mod.bias",
        ],
    )
    def test_a_missing_key_is_named(self, key: str, tmp_path: Path) -> None:
        tensors = small_control()
        del tensors[key]
        with pytest.raises(ValueError, match=rf"control\.safetensors does not fit: missing \(1\): {re.escape(key)}\."):
            read_control(write_small(tmp_path, tensors))

    def test_an_extra_key_is_named(self, tmp_path: Path) -> None:
        tensors = small_control() | {"blocks.0.self_attn.q.weight": torch.zeros(2)}
        with pytest.raises(ValueError, match=r"does not fit: unexpected \(1\): blocks\.0\.self_attn\.q\.weight\."):
            read_control(write_small(tmp_path, tensors))

    def test_a_wrong_shape_is_named_with_both(self, tmp_path: Path) -> None:
        tensors = small_control() | {"control_blocks_dense.1.norm3.bias": torch.zeros(17)}
        message = r"does not fit: wrong shape \(1\): control_blocks_dense\.1\.norm3\.bias \[17\] instead of \[16\]"
        with pytest.raises(ValueError, match=message):
            read_control(write_small(tmp_path, tensors))

    def test_all_three_at_once_and_many_are_counted(self, tmp_path: Path) -> None:
        tensors = {key: value for key, value in small_control().items() if "sparse.1.self_attn" not in key}
        tensors |= {"more": torch.zeros(1), "control_t_mod.bias": torch.zeros(1)}
        with pytest.raises(ValueError, match=r"missing \(10\): .* and 4 more; unexpected \(1\): more; wrong shape \(1\)"):
            read_control(write_small(tmp_path, tensors))

    def test_the_same_tensor_in_two_layouts_is_refused(self, tmp_path: Path) -> None:
        tensors = small_control()
        key = "control_blocks_dense.1.ffn.0.bias"
        tensors[repacked(key)] = tensors[key] + 1
        with pytest.raises(ValueError, match=rf"control\.safetensors holds {re.escape(key)} twice, as .*blocks\.1\.control_"):
            read_control(write_small(tmp_path, tensors))

    def test_another_models_file_is_refused_with_what_it_holds(self, tmp_path: Path) -> None:
        path = write_small(tmp_path, {"lora_unet.alpha": torch.zeros(1)}, "lora.safetensors")
        with pytest.raises(ValueError, match=r"lora\.safetensors holds no LongVie control network \(it has lora_unet\.alpha"):
            read_control(path)

    def test_a_file_without_tensors_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"empty\.safetensors holds no LongVie control network \(it has no tensors"):
            read_control(write_small(tmp_path, {}, "empty.safetensors"))

    def test_a_far_layer_number_is_refused_before_that_many_layers_are_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def guarded(config: DualControlConfig):
            assert config.num_layers < 1000, "a network of the layer number in a file's key was about to be built"
            return torch_dual_control(config)

        monkeypatch.setattr(control_weights, "torch_dual_control", guarded)
        tensors = small_control() | {"control_combine_linears.999999999.bias": torch.zeros(1)}
        with pytest.raises(ValueError, match=r"control\.safetensors"):
            read_control(write_small(tmp_path, tensors))

    @pytest.mark.parametrize(("dim", "control_dim", "ffn_dim"), [(0, 128, 8), (2**62, 0, 8), (0, 128, 2**62)])
    def test_empty_tensors_of_any_claimed_width_are_refused(
        self, dim: int, control_dim: int, ffn_dim: int, tmp_path: Path
    ) -> None:
        shapes = {
            "control_text_linear.weight": [control_dim, dim],
            "control_combine_linears.0.bias": [0],
            "control_blocks_dense.0.ffn.0.weight": [ffn_dim, 0],
        }
        header = {key: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for key, shape in shapes.items()}
        text = json.dumps(header).encode()
        (tmp_path / "control.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(ValueError, match=r"control\.safetensors"):
            read_control(tmp_path / "control.safetensors")


class TestHeadWidth:
    def read(self, folder: Path, metadata: dict[str, str] | None) -> DualControlConfig:
        path = folder / "control.safetensors"
        config = DualControlConfig(dim=32, control_dim=256, ffn_dim=8, num_heads=2, num_layers=1, image=False)
        save_file({key: torch.zeros(shape) for key, shape in control_shapes(config).items()}, path, metadata=metadata)
        return read_control(path)[0]

    @pytest.mark.parametrize(
        ("metadata", "heads"),
        [(None, 2), ({"config": "{}"}, 2), ({"other": "x"}, 2), ({"config": '{"head_dim": 64, "more": [1]}'}, 4)],
    )
    def test_is_128_unless_the_metadata_says_otherwise(self, metadata: dict | None, heads: int, tmp_path: Path) -> None:
        assert self.read(tmp_path, metadata).num_heads == heads

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("{", "is not a JSON object"),
            ("[1]", "is not a JSON object"),
            ("64", "is not a JSON object"),
            ("[" * 100_000, "is not a JSON object"),
            ('{"head_dim": "64"}', "head_dim '64' .* not an even number"),
            ('{"head_dim": 64.0}', "head_dim 64.0 .* not an even number"),
            ('{"head_dim": true}', "head_dim True .* not an even number"),
            ('{"head_dim": null}', "head_dim None .* not an even number"),
            ('{"head_dim": 0}', "head_dim 0 .* not an even number"),
            ('{"head_dim": -64}', "head_dim -64 .* not an even number"),
            ('{"head_dim": 65}', "head_dim 65 .* not an even number"),
            ('{"head_dim": 96}', "control width 256 is no multiple of the head width 96"),
        ],
    )
    def test_broken_metadata_is_refused(self, config: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"control\.safetensors: .*{message}"):
            self.read(tmp_path, {"config": config})


def test_keys_that_are_already_in_the_published_layout_stay() -> None:
    assert all(canonical_control_key(key) == key for key in published("control"))


class TestUnreadableFiles:
    def test_absent(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"weight file away\.safetensors does not exist"):
            read_header(tmp_path / "away.safetensors")

    def test_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder.safetensors").mkdir()
        with pytest.raises(FileNotFoundError, match=r"folder\.safetensors"):
            read_header(tmp_path / "folder.safetensors")

    @pytest.mark.parametrize("name", ["control.pt", "control.ckpt", "control.bin", "control", "control.safetensors.zip"])
    def test_another_ending_is_never_opened(self, name: str, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple:
                return (os.mkdir, (str(tmp_path / "exploded"),))

        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(ValueError, match=rf"{re.escape(name)} is not a \.safetensors file"):
            read_header(tmp_path / name)
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\0" * 8,
            b"<!DOCTYPE html><html><body>Please log in</body></html>",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5267302816\n",
            pickle.dumps({"control_text_linear.weight": [1.0]}),
            struct.pack("<Q", 2) + b"[]",
            struct.pack("<Q", 2**63) + b"{}",
            struct.pack("<Q", 4) + b'"\xff"}',
        ],
        ids=["empty", "zeros", "html", "git-lfs", "pickle", "list", "huge", "not-utf8"],
    )
    def test_what_is_no_safetensors_file_is_named(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "control.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"control\.safetensors is not a readable safetensors file .*fetch it again"):
            read_control(path)

    def test_every_truncation_is_refused_by_name(self, tmp_path: Path) -> None:
        tensors = {key: value for key, value in small_control().items() if key.startswith(("control_t", "control_c"))}
        whole = write_small(tmp_path, tensors).read_bytes()
        path = tmp_path / "cut.safetensors"
        for size in [*range(0, len(whole), 41), len(whole) - 1]:
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"cut\.safetensors is not a readable safetensors file"):
                read_header(path)

    @settings(deadline=None)
    @given(st.one_of(st.binary(max_size=200), st.binary(max_size=120).map(lambda data: struct.pack("<Q", len(data)) + data)))
    def test_random_bytes_are_refused_by_name(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "noise.safetensors"
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r"noise\.safetensors"):
                read_control(path)

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_a_header_with_anything_in_it_is_read_or_refused_by_name(self, data: st.DataObject) -> None:
        numbers = st.integers(-1, 40) | st.just(2**63)
        entry = st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "X9", ""]),
                "shape": st.lists(numbers, max_size=3),
                "data_offsets": st.just([0, 0]) | st.lists(numbers, min_size=2, max_size=2),
            }
        )
        keys = st.sampled_from(
            ["control_text_linear.weight", "control_combine_linears.0.bias", "control_combine_linears.x", "", "é"]
            + ["control_combine_linears.-3.weight", "control_blocks_dense.0.ffn.0.weight"]
        )
        anything = st.none() | st.integers() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
        header = data.draw(st.dictionaries(keys, entry | anything, max_size=4))
        metadata = data.draw(st.none() | st.dictionaries(st.just("config"), st.text(max_size=20) | st.integers(), max_size=1))
        text = json.dumps(header if metadata is None else {"__metadata__": metadata, **header}).encode()
        content = struct.pack("<Q", len(text)) + text + data.draw(st.binary(max_size=64))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "odd.safetensors"
            path.write_bytes(content)
            for read in (read_control, lambda path: read_overlay(path, 2, 8)):
                with pytest.raises(ValueError, match=r"odd\.safetensors"):
                    read(path)


class TestOverlayFile:
    def overlay(self) -> dict[str, Tensor]:
        return {key: torch.randn(shape) for key, shape in overlay_shapes(2, 8).items()}

    @pytest.mark.parametrize("prefix", ["", "pipe.dit.", "model.diffusion_model.", "diffusion_model."])
    def test_known_prefixes(self, prefix: str, tmp_path: Path) -> None:
        overlay = self.overlay()
        save_file({prefix + key: value for key, value in overlay.items()}, tmp_path / "dit.safetensors")
        loaded = dict(read_overlay(tmp_path / "dit.safetensors", 2, 8).tensors())
        assert loaded.keys() == overlay.keys()
        assert all(torch.equal(loaded[key], value) for key, value in overlay.items())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"blocks.1.self_attn.o.bias": None}, r"missing \(1\): blocks\.1\.self_attn\.o\.bias"),
            ({"blocks.1.cross_attn.o.bias": torch.zeros(8)}, r"unexpected \(1\): blocks\.1\.cross_attn\.o\.bias"),
            ({"blocks.0.self_attn.norm_q.weight": torch.zeros(4)}, r"blocks\.0\.self_attn\.norm_q\.weight \[4\] instead of"),
        ],
    )
    def test_a_wrong_key_is_named(self, change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
        tensors = {key: value for key, value in (self.overlay() | change).items() if value is not None}
        save_file(tensors, tmp_path / "dit.safetensors")
        with pytest.raises(ValueError, match=rf"dit\.safetensors does not fit: .*{message}"):
            read_overlay(tmp_path / "dit.safetensors", 2, 8)

    def test_the_same_tensor_with_and_without_prefix_is_refused(self, tmp_path: Path) -> None:
        overlay = self.overlay()
        save_file(overlay | {f"pipe.dit.{key}": value.clone() for key, value in overlay.items()}, tmp_path / "dit.safetensors")
        with pytest.raises(ValueError, match=r"dit\.safetensors holds blocks\..* twice"):
            read_overlay(tmp_path / "dit.safetensors", 2, 8)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Merge:
    """A small backbone and an overlay that fits it, on disk."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32, prefix: str = "", **more: Tensor) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        state = WanModel(BACKBONE).state_dict()
        self.state = {
            # As in the wild: norms, biases and modulation stay in float32 where the weights are fp8.
            prefix + key: torch.randn(value.shape, generator=generator).to(
                dtype if value.ndim > 1 and "modulation" not in key else torch.float32
            )
            for key, value in state.items()
        } | more
        self.patch = {key: torch.randn(shape, generator=generator).bfloat16() for key, shape in overlay_shapes(3, 32).items()}
        self.base, self.overlay, self.out = (folder / f"{name}.safetensors" for name in ("wan", "dit", "merged"))
        save_file(self.state, self.base, metadata={"format": "pt", "modelspec.title": "Wan «2.1»"})
        save_file(self.patch, self.overlay, metadata={"format": "pt", "from": "overlay"})

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    return Merge(tmp_path)


class TestMerge:
    @pytest.mark.parametrize("prefix", ["", PREFIX])
    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str
    )
    def test_is_the_base_with_the_overlays_tensors(self, dtype: torch.dtype, prefix: str, tmp_path: Path) -> None:
        merge = Merge(tmp_path, dtype, prefix)
        assert merge_overlay(merge.base, merge.overlay, merge.out) == 30
        got = load_file(merge.out)
        assert got.keys() == merge.state.keys()
        for key, old in merge.state.items():
            new = merge.patch.get(key.removeprefix(prefix))
            assert got[key].dtype == old.dtype, key
            assert bits(got[key]) == bits(old if new is None else new.to(old.dtype)), key
        changed = [key for key, old in merge.state.items() if bits(got[key]) != bits(old)]
        assert len(changed) == 30 and all(".self_attn." in key for key in changed)

    def test_keeps_the_bases_metadata(self, merge: Merge) -> None:
        merge_overlay(merge.base, merge.overlay, merge.out)
        with safe_open(merge.out, framework="pt") as file:
            assert file.metadata() == {"format": "pt", "modelspec.title": "Wan «2.1»"}

    def test_a_base_without_metadata_stays_so(self, merge: Merge) -> None:
        save_file(merge.state, merge.base)
        merge_overlay(merge.base, merge.overlay, merge.out)
        with safe_open(merge.out, framework="pt") as file:
            assert not file.metadata()

    def test_scalars_empty_and_odd_tensors_of_the_base_come_through(self, tmp_path: Path) -> None:
        more = {
            "scalar": torch.tensor(2.5),
            "empty": torch.zeros(0, 3),
            "flags": torch.tensor([True, False, True]),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "count": torch.tensor([2**40]),
        }
        merge = Merge(tmp_path, torch.float16, **more)
        merge_overlay(merge.base, merge.overlay, merge.out)
        got = load_file(merge.out)
        for key, value in more.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value), key

    def test_an_overlay_with_a_prefix_of_its_own(self, tmp_path: Path) -> None:
        merge = Merge(tmp_path, prefix=PREFIX)
        save_file({f"pipe.dit.{key}": value for key, value in merge.patch.items()}, merge.overlay)
        merge_overlay(merge.base, merge.overlay, merge.out)
        got = load_file(merge.out)
        assert all(torch.equal(got[PREFIX + key], value.float()) for key, value in merge.patch.items())

    def test_equal_inputs_give_equal_bytes_and_leave_the_inputs_alone(self, merge: Merge) -> None:
        before = merge.base.read_bytes(), merge.overlay.read_bytes()
        merge_overlay(merge.base, merge.overlay, merge.out)
        first = merge.out.read_bytes()
        merge_overlay(merge.base, merge.overlay, merge.out)
        assert merge.out.read_bytes() == first
        assert (merge.base.read_bytes(), merge.overlay.read_bytes()) == before
        assert merge.names() == ["dit.safetensors", "merged.safetensors", "wan.safetensors"]

    def test_merging_twice_changes_nothing_more(self, merge: Merge) -> None:
        again = merge.folder / "again.safetensors"
        merge_overlay(merge.base, merge.overlay, merge.out)
        merge_overlay(merge.out, merge.overlay, again)
        assert again.read_bytes() == merge.out.read_bytes()

    def test_loads_strictly_into_the_backbone(self, merge: Merge) -> None:
        merge_overlay(merge.base, merge.overlay, merge.out)
        WanModel(BACKBONE).load_state_dict(load_file(merge.out), strict=True)


class TestRefusedMerge:
    def refused(self, merge: Merge, message: str, error: type[Exception] = ValueError) -> None:
        before = merge.names()
        with pytest.raises(error, match=message):
            merge_overlay(merge.base, merge.overlay, merge.out)
        assert merge.names() == before

    @pytest.mark.parametrize(
        ("layers", "dim", "message"),
        [
            (2, 32, r"dit\.safetensors does not fit: missing \(10\): blocks\.2\."),
            (4, 32, r"dit\.safetensors does not fit: unexpected \(10\): blocks\.3\."),
            (3, 16, r"dit\.safetensors does not fit: wrong shape \(30\): .* \[16, 16\] instead of \[32, 32\]"),
        ],
    )
    def test_overlay_of_another_size(self, merge: Merge, layers: int, dim: int, message: str) -> None:
        save_file({key: torch.zeros(shape) for key, shape in overlay_shapes(layers, dim).items()}, merge.overlay)
        self.refused(merge, message)

    @pytest.mark.parametrize("key", ["blocks.0.self_attn.q.scale_weight", "blocks.0.self_attn.q.weight_scale", "scaled_fp8"])
    def test_scaled_fp8_base(self, key: str, tmp_path: Path) -> None:
        merge = Merge(tmp_path, torch.float8_e4m3fn, **{key: torch.ones(1)})
        self.refused(merge, r"wan\.safetensors holds scaled fp8 weights .*bf16 or fp16 checkpoint")

    def test_base_of_another_model(self, merge: Merge) -> None:
        save_file({"transformer.h.0.attn.weight": torch.zeros(4)}, merge.base)
        self.refused(merge, r"wan\.safetensors is no Wan backbone")

    def test_base_and_overlay_swapped(self, merge: Merge) -> None:
        merge.base, merge.overlay = merge.overlay, merge.base
        self.refused(merge, r"dit\.safetensors is no Wan backbone")

    def test_base_lacks_a_tensor_that_the_overlay_has(self, merge: Merge) -> None:
        del merge.state["blocks.1.self_attn.norm_k.weight"]
        save_file(merge.state, merge.base)
        self.refused(merge, r"wan\.safetensors does not fit: missing \(1\): blocks\.1\.self_attn\.norm_k\.weight")

    def test_out_is_the_base(self, merge: Merge) -> None:
        before = merge.base.read_bytes()
        merge.out = merge.folder / "." / merge.base.name
        self.refused(merge, r"wan\.safetensors is the base itself: give another file name")
        assert merge.base.read_bytes() == before

    def test_out_is_the_overlay(self, merge: Merge) -> None:
        before = merge.overlay.read_bytes()
        merge.out = merge.overlay
        self.refused(merge, r"dit\.safetensors is the overlay itself: give another file name")
        assert merge.overlay.read_bytes() == before

    def test_missing_and_broken_files(self, merge: Merge) -> None:
        whole = merge.overlay.read_bytes()
        merge.overlay.write_bytes(whole[:-1])
        self.refused(merge, r"dit\.safetensors is not a readable safetensors file")
        merge.overlay.unlink()
        self.refused(merge, r"weight file dit\.safetensors does not exist", FileNotFoundError)
        merge.base.write_bytes(b"")
        self.refused(merge, r"wan\.safetensors is not a readable safetensors file")

    def test_a_full_disk_leaves_nothing_and_an_older_result_alone(self, merge: Merge, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        merge.out.write_bytes(b"older")
        monkeypatch.setattr(os, "fsync", full)
        self.refused(merge, "No space left on device", OSError)
        assert merge.out.read_bytes() == b"older"

    def test_out_in_a_folder_that_is_not_there(self, merge: Merge) -> None:
        merge.out = merge.folder / "away" / "merged.safetensors"
        self.refused(merge, "away", OSError)

    def test_a_dtype_that_cannot_be_copied_is_named(self, tmp_path: Path) -> None:
        merge = Merge(tmp_path, odd=torch.zeros(2, dtype=torch.complex64))
        self.refused(merge, "odd has dtype C64, which cannot be merged")


class TestCommandLine:
    def test_success_as_a_program(self, merge: Merge) -> None:
        command = [sys.executable, "-m", "longvie_core.checkpoint", "merge", merge.base, merge.overlay, merge.out]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip() == (f"{merge.out}: 30 self-attention tensors of dit.safetensors merged into wan.safetensors")
        assert load_file(merge.out).keys() == merge.state.keys()

    @pytest.mark.parametrize("missing", ["base", "overlay"])
    def test_failure_is_one_line_and_exit_code_1(self, merge: Merge, missing: str, capsys: pytest.CaptureFixture) -> None:
        getattr(merge, missing).unlink()
        assert main(["merge", str(merge.base), str(merge.overlay), str(merge.out)]) == 1
        printed = capsys.readouterr()
        name = getattr(merge, missing).name
        assert printed.out == "" and printed.err == f"merge failed: weight file {name} does not exist\n"
        assert not merge.out.exists()

    def test_a_full_disk_is_a_message_too(
        self, merge: Merge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
    ) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        assert main(["merge", str(merge.base), str(merge.overlay), str(merge.out)]) == 1
        assert "No space left on device" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["merge"], ["merge", "a", "b"], ["split", "a"]])
    def test_wrong_use_is_exit_code_2(self, arguments: list[str], capsys: pytest.CaptureFixture) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert "usage:" in capsys.readouterr().err
