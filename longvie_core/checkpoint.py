"""Weight files in the wild: their key layouts, strict validation, and the overlay merge.

The published ``control.safetensors`` (with or without the prefix ``pipe.dual_controller.``) and Kijai's repack, which hangs
the control blocks under the backbone's blocks, are read into one layout. The reference loads with ``strict=False`` and so
accepts any file; here a missing, unexpected or wrongly shaped key is an error that names it.

``python -m longvie_core.checkpoint merge BASE OVERLAY OUT`` writes a backbone with ``dit.safetensors`` merged in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .dual_control import DualControlConfig, torch_dual_control
from .files import write_atomically

OFFICIAL_PREFIX = "pipe.dual_controller."
DEFAULT_HEAD_DIM = 128
MAX_NAMED = 6
"""Keys that an error message names before it counts the rest."""

BACKBONE_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "pipe.dit.", "")

_REPACKED = re.compile(r"blocks\.(\d+)\.(control_blocks_dense|control_blocks_sparse|control_combine_linears)\.(.+)")

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WeightFile:
    """Header of a safetensors file: nothing of its tensors is read yet."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> WeightFile:
    """Read keys, shapes, dtypes and metadata of a safetensors file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a safetensors file (its name and the mend are in the text).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weight file {path.name} does not exist")
    if path.suffix != ".safetensors":
        raise ValueError(f"{path.name} is not a .safetensors file: only safetensors weights are read (never pickles)")
    try:
        with safe_open(path, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            return WeightFile(
                path,
                {key: tuple(view.get_shape()) for key, view in slices.items()},
                {key: view.get_dtype() for key, view in slices.items()},
                file.metadata() or {},
            )
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path.name} is not a readable safetensors file ({error}): it may be a text page saved in place of the "
            "weights, or a broken download; fetch it again"
        ) from error


def canonical_control_key(key: str) -> str:
    """A control key of any known layout in the published layout without prefix."""
    key = key.replace(OFFICIAL_PREFIX, "")
    for prefix in BACKBONE_PREFIXES[:-1]:
        key = key.removeprefix(prefix)
    key = key.removeprefix("dual_controller.")
    repacked = _REPACKED.fullmatch(key)
    if repacked:
        layer, module, rest = repacked.groups()
        return f"{module}.{layer}.{rest}"
    return key


def control_config(shapes: Shapes, metadata: Mapping[str, str], name: str) -> DualControlConfig:
    """Shape of the control network in a file, read from its tensors and its metadata.

    Args:
        shapes: canonical keys and shapes.
        metadata: the file's; ``config`` may hold JSON ``{"head_dim": 128}`` (128 where it does not).
        name: file name for errors.

    Raises:
        ValueError: the file holds no LongVie control network, or its metadata is broken.
    """
    try:
        control_dim, dim = shapes["control_text_linear.weight"]
        # Counted, not the highest number: a file could name any, and a network of that size would be made of it.
        layers = len({key.split(".")[1] for key in shapes if key.startswith("control_combine_linears.")})
        ffn_dim = shapes["control_blocks_dense.0.ffn.0.weight"][0]
        if min(control_dim, dim, ffn_dim, layers) < 1:
            raise ValueError("a width or the number of layers is 0")
    except (KeyError, ValueError, IndexError) as error:
        found = ", ".join(sorted(shapes)[:MAX_NAMED]) or "no tensors"
        raise ValueError(
            f"{name} holds no LongVie control network (it has {found}, ...): give control.safetensors of LongVie 2 "
            "or Kijai's LongVie2_dual_controller_controlnet"
        ) from error
    head_dim = _metadata_head_dim(metadata, name)
    if control_dim % head_dim:
        raise ValueError(f"{name}: control width {control_dim} is no multiple of the head width {head_dim}")
    return DualControlConfig(
        dim=dim,
        control_dim=control_dim,
        ffn_dim=ffn_dim,
        num_heads=control_dim // head_dim,
        num_layers=layers,
        image="control_blocks_dense.0.cross_attn.k_img.weight" in shapes,
    )


def _metadata_head_dim(metadata: Mapping[str, str], name: str) -> int:
    if "config" not in metadata:
        return DEFAULT_HEAD_DIM
    try:
        head_dim = json.loads(metadata["config"]).get("head_dim", DEFAULT_HEAD_DIM)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name}: its metadata 'config' is not a JSON object ({error})") from error
    if not isinstance(head_dim, int) or head_dim < 6 or head_dim % 2:
        raise ValueError(f"{name}: head_dim {head_dim!r} in its metadata is not an even number of at least 6")
    return head_dim


def control_shapes(config: DualControlConfig) -> dict[str, tuple[int, ...]]:
    """Every key and shape of a control network, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in torch_dual_control(config).state_dict().items()}


def overlay_shapes(num_layers: int, dim: int) -> dict[str, tuple[int, ...]]:
    """Every key and shape of a ``dit.safetensors`` overlay: the self-attention of all backbone blocks."""
    shapes = {}
    for layer in range(num_layers):
        attention = f"blocks.{layer}.self_attn"
        for name in "qkvo":
            shapes[f"{attention}.{name}.weight"] = (dim, dim)
            shapes[f"{attention}.{name}.bias"] = (dim,)
        for name in ("norm_q", "norm_k"):
            shapes[f"{attention}.{name}.weight"] = (dim,)
    return shapes


def check_shapes(found: Shapes, expected: Shapes, name: str) -> None:
    """Refuse a state dict that is not exactly what is expected.

    Raises:
        ValueError: naming the missing, unexpected and wrongly shaped keys.
    """
    problems = [
        _named("missing", sorted(expected.keys() - found.keys())),
        _named("unexpected", sorted(found.keys() - expected.keys())),
        _named(
            "wrong shape",
            [
                f"{key} {list(found[key])} instead of {list(shape)}"
                for key, shape in sorted(expected.items())
                if key in found and tuple(found[key]) != tuple(shape)
            ],
        ),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise ValueError(f"{name} does not fit: {'; '.join(problems)}. Is it the right file, completely downloaded?")


def _named(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - MAX_NAMED} more" if len(keys) > MAX_NAMED else ""
    return f"{what} ({len(keys)}): {', '.join(keys[:MAX_NAMED])}{more}"


@dataclass(frozen=True)
class Layout:
    """A validated weight file: its header, and for every canonical key the key in the file."""

    file: WeightFile
    keys: dict[str, str]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical key, tensor) one at a time."""
        with safe_open(self.file.path, framework="pt") as file:
            for key, stored in self.keys.items():
                yield key, file.get_tensor(stored)


def _layout(file: WeightFile, canonical: Iterable[tuple[str, str]]) -> Layout:
    keys: dict[str, str] = {}
    for stored, key in canonical:
        if key in keys:
            raise ValueError(f"{file.path.name} holds {key} twice, as {keys[key]} and as {stored}")
        keys[key] = stored
    return Layout(file, keys)


def read_control(path: str | os.PathLike[str]) -> tuple[DualControlConfig, Layout]:
    """Read and validate the header of a control file of any known layout.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_header`, :func:`control_config` and :func:`check_shapes`.
    """
    file = read_header(path)
    layout = _layout(file, ((key, canonical_control_key(key)) for key in file.shapes))
    shapes = {key: file.shapes[stored] for key, stored in layout.keys.items()}
    config = control_config(shapes, file.metadata, file.path.name)
    check_shapes(shapes, control_shapes(config), file.path.name)
    return config, layout


def read_overlay(path: str | os.PathLike[str], num_layers: int, dim: int) -> Layout:
    """Read and validate the header of a ``dit.safetensors`` overlay for a backbone of ``num_layers`` blocks of width ``dim``.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_header` and :func:`check_shapes`.
    """
    file = read_header(path)
    prefix = backbone_prefix(file.shapes)
    layout = _layout(file, ((key, key.removeprefix(prefix)) for key in file.shapes))
    check_shapes(
        {key: file.shapes[stored] for key, stored in layout.keys.items()}, overlay_shapes(num_layers, dim), file.path.name
    )
    return layout


def backbone_prefix(keys: Iterable[str]) -> str:
    """What stands in front of ``blocks.0.`` in a backbone's keys."""
    keys = list(keys)
    return next(prefix for prefix in BACKBONE_PREFIXES if not prefix or any(key.startswith(prefix) for key in keys))


def merge_overlay(base: Path, overlay: Path, out: Path) -> int:
    """Write ``base`` with the self-attention of ``overlay`` in place of its own; memory stays at one tensor.

    The result keeps the base's keys, dtypes and metadata, and is renamed into place when complete.

    Returns:
        Number of tensors replaced.

    Raises:
        FileNotFoundError, ValueError: a file is missing, of the wrong kind, or the two do not fit each other.
    """
    base_file = read_header(base)
    prefix = backbone_prefix(base_file.shapes)
    modulation = [key for key in base_file.shapes if re.fullmatch(re.escape(prefix) + r"blocks\.\d+\.modulation", key)]
    if not modulation:
        raise ValueError(f"{base.name} is no Wan backbone: it has no blocks.N.modulation")
    scaled = [key for key in base_file.shapes if key.endswith((".scale_weight", ".weight_scale", "scaled_fp8"))]
    if scaled:
        raise ValueError(
            f"{base.name} holds scaled fp8 weights ({scaled[0]}): merge into the bf16 or fp16 checkpoint, then quantise"
        )
    layout = read_overlay(overlay, len(modulation), base_file.shapes[modulation[0]][-1])
    check_shapes(
        {key: base_file.shapes[prefix + key] for key in layout.keys if prefix + key in base_file.shapes},
        {key: layout.file.shapes[stored] for key, stored in layout.keys.items()},
        base.name,
    )
    for path, role in ((base, "base"), (overlay, "overlay")):
        if out.exists() and out.samefile(path):
            raise ValueError(f"{out.name} is the {role} itself: give another file name")
    replaced = {prefix + key: stored for key, stored in layout.keys.items()}
    with safe_open(base, framework="pt") as source, safe_open(overlay, framework="pt") as patch:
        write_safetensors(
            out,
            ((key, base_file.dtypes[key], shape) for key, shape in base_file.shapes.items()),
            lambda key: patch.get_tensor(replaced[key]) if key in replaced else source.get_tensor(key),
            base_file.metadata,
        )
    return len(replaced)


_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def write_safetensors(out: Path, entries: Iterable[tuple[str, str, tuple[int, ...]]], tensor, metadata: dict) -> None:
    """Write a safetensors file one tensor at a time (the library's own writer wants all of them in memory).

    Args:
        out: written under another name first, then renamed into place.
        entries: (key, safetensors dtype name, shape) of every tensor.
        tensor: ``key -> Tensor``, cast to the entry's dtype here.
        metadata: text metadata of the file.
    """
    # Sorted: the library hands metadata out in another order every time, and equal inputs are to give equal bytes.
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for key, dtype, shape in entries:
        if dtype not in _DTYPES:
            raise ValueError(f"{key} has dtype {dtype}, which cannot be merged")
        size = _DTYPES[dtype].itemsize * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key, entry in header.items():
                if key != "__metadata__":
                    data = tensor(key).to(_DTYPES[entry["dtype"]]).contiguous()
                    file.write(data.flatten().view(torch.uint8).numpy())

    write_atomically(out, write)


def main(arguments: list[str] | None = None) -> int:
    """Command line of this module; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m longvie_core.checkpoint", description="LongVie weight files.")
    commands = parser.add_subparsers(dest="command", required=True)
    merge = commands.add_parser("merge", help="write a Wan backbone with LongVie's dit.safetensors merged in")
    merge.add_argument("base", type=Path, help="Wan2.1-I2V-14B backbone (.safetensors, not scaled fp8)")
    merge.add_argument("overlay", type=Path, help="LongVie's dit.safetensors")
    merge.add_argument("out", type=Path, help="file to write; put it under ComfyUI's models/diffusion_models")
    options = parser.parse_args(arguments)
    try:
        count = merge_overlay(options.base, options.overlay, options.out)
    except (ValueError, OSError) as error:
        print(f"merge failed: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {count} self-attention tensors of {options.overlay.name} merged into {options.base.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
