"""Weight files in the wild: their key layouts, strict validation, conversion, and the overlay merge.

The published ``control.safetensors`` (with or without the prefix ``pipe.dual_controller.``) and Kijai's repack, which hangs
the control blocks under the backbone's blocks, are read into one layout. The reference loads with ``strict=False`` and so
accepts any file; here a missing, unexpected or wrongly shaped key is an error that names it.

Wan backbones and VAEs come with the original key names or with those of diffusers; both are read under the original ones.

``python -m longvie_core.checkpoint merge BASE OVERLAY OUT`` writes a backbone with ``dit.safetensors`` merged in.
``python -m longvie_core.checkpoint convert SOURCE OUT`` turns a backbone or VAE from one of the two layouts into the other.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .dual_control import DualControlConfig, torch_dual_control
from .files import write_atomically
from .wan import IMAGE_FEATURES, WanConfig, WanModel

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


def _metadata_config(metadata: Mapping[str, str], name: str) -> dict:
    return _json_object(metadata.get("config", "{}"), f"{name}: its metadata 'config'")


def _json_object(text: str, what: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object (it is a {type(value).__name__})")
    return value


def _metadata_head_dim(metadata: Mapping[str, str], name: str) -> int:
    head_dim = _metadata_config(metadata, name).get("head_dim", DEFAULT_HEAD_DIM)
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


# Backbones and VAEs: original and diffusers layouts

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_CONFIG = "config.json"

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE_ATTENTION = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}

_BLOCK_MODULES = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in (_ATTENTION | _IMAGE_ATTENTION).items()},
}

_BACKBONE_MODULES = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}


def _vae_modules() -> dict[str, str]:
    """Every module of the Wan 2.1 VAE that has weights: original name -> diffusers name."""
    residual = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}
    resnet = {**residual, "shortcut": "conv_shortcut"}
    resample = {name: name for name in ("resample.1", "time_conv")}
    parts = {f"encoder.downsamples.{i}": (f"encoder.down_blocks.{i}", resnet | resample) for i in range(11)}
    for i in range(15):
        stage, place = divmod(i, 4)  # three residual blocks, then the upsampler
        theirs = f"resnets.{place}" if place < 3 else "upsamplers.0"
        parts[f"decoder.upsamples.{i}"] = (f"decoder.up_blocks.{stage}.{theirs}", resnet if place < 3 else resample)
    names = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
    for half in ("encoder", "decoder"):
        ends = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        names |= {f"{half}.{ours}": f"{half}.{theirs}" for ours, theirs in ends.items()}
        parts[f"{half}.middle.0"] = (f"{half}.mid_block.resnets.0", residual)
        parts[f"{half}.middle.1"] = (f"{half}.mid_block.attentions.0", {name: name for name in ("norm", "to_qkv", "proj")})
        parts[f"{half}.middle.2"] = (f"{half}.mid_block.resnets.1", residual)
    for ours, (theirs, modules) in parts.items():
        names |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in modules.items()}
    return names


_BLOCK = re.compile(r"(blocks\.\d+\.)(.+)")


@dataclass(frozen=True)
class KeyNames:
    """Names of the modules of one kind of network: original -> diffusers, at the top and inside a transformer block."""

    kind: str
    top: Mapping[str, str]
    block: Mapping[str, str]

    def to_diffusers(self, key: str) -> str:
        """An original key in the diffusers layout; ``KeyError`` where this network has no such key."""
        return _renamed(key, self.top, self.block)

    def to_original(self, key: str) -> str:
        """A diffusers key in the original layout; ``KeyError`` where this network has no such key."""
        return _renamed(key, *({theirs: ours for ours, theirs in names.items()} for names in (self.top, self.block)))


def _renamed(key: str, top: Mapping[str, str], block: Mapping[str, str]) -> str:
    in_block = _BLOCK.fullmatch(key)
    prefix, rest = in_block.groups() if in_block else ("", key)
    names = block if in_block else top
    if rest in names:
        return prefix + names[rest]
    module, _, leaf = rest.rpartition(".")
    return f"{prefix}{names[module]}.{leaf}"


BACKBONE = KeyNames("Wan backbone", _BACKBONE_MODULES, _BLOCK_MODULES)
VAE = KeyNames("Wan 2.1 VAE", _vae_modules(), {})


@dataclass(frozen=True)
class Weights:
    """Header of a backbone or VAE in either layout, under its original keys; nothing of its tensors is read yet.

    Attributes:
        name: file or folder, for errors.
        names: which kind of network.
        diffusers: whether it has the diffusers layout.
        where: for every original key the file and the key in it.
        shapes, dtypes: by original key.
        metadata: text metadata of the (first) file.
        config: ``config.json`` of a diffusers folder, else empty.
    """

    name: str
    names: KeyNames
    diffusers: bool
    where: dict[str, tuple[Path, str]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    config: dict

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads one tensor by its original key, good inside the ``with`` block."""
        with ExitStack() as stack:
            paths = {path for path, _ in self.where.values()}
            files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
            yield lambda key: files[self.where[key][0]].get_tensor(self.where[key][1])


def read_weights(path: Path) -> Weights:
    """Read the header of a Wan backbone or VAE: an original file, or a file or folder (also in shards) of diffusers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not safetensors, or a key that neither network has.
    """
    config = _read_json_object(path / DIFFUSERS_CONFIG) if path.is_dir() else {}
    files = [read_header(file) for file in (_folder_files(path) if path.is_dir() else [path])]
    stored = {key: file for file in files for key in file.shapes}
    # Some diffusers files hold a norm that no network reads; diffusers drops it as well.
    kept = [key for key in stored if not key.endswith("norm_added_q.weight")]
    prefix = backbone_prefix(kept)
    names, diffusers = _recognised({key.removeprefix(prefix) for key in kept}, path.name)
    where, unknown = {}, []
    for key in kept:
        bare = key.removeprefix(prefix)
        try:
            original = names.to_original(bare) if diffusers else names.to_original(names.to_diffusers(bare))
        except KeyError:
            unknown.append(key)
        else:
            where[original] = (stored[key].path, key)
    if unknown:
        raise ValueError(f"{path.name} is no plain {names.kind}: {_named('unexpected', sorted(unknown))}")
    where = dict(sorted(where.items()))  # as the safetensors library writes them: there and back gives equal bytes
    return Weights(
        path.name,
        names,
        diffusers,
        where,
        {key: stored[name].shapes[name] for key, (_, name) in where.items()},
        {key: stored[name].dtypes[name] for key, (_, name) in where.items()},
        files[0].metadata,
        config,
    )


def _recognised(keys: set[str], name: str) -> tuple[KeyNames, bool]:
    """Kind of network, and whether its keys are diffusers', by a key that only that layout has."""
    marks = {
        "head.modulation": (BACKBONE, False),
        "condition_embedder.time_proj.weight": (BACKBONE, True),
        "decoder.head.0.gamma": (VAE, False),
        "decoder.norm_out.gamma": (VAE, True),
    }
    for mark, found in marks.items():
        if mark in keys:
            return found
    raise ValueError(
        f"{name} is neither a Wan backbone nor a Wan 2.1 VAE (it has {', '.join(sorted(keys)[:MAX_NAMED])}, ...)"
    )


def _folder_files(folder: Path) -> list[Path]:
    """Weight files of a diffusers folder, in order; names in its index that lead elsewhere are refused."""
    index = folder / f"{DIFFUSERS_WEIGHTS}.index.json"
    if not index.is_file():
        return [folder / DIFFUSERS_WEIGHTS]
    shards = _read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and Path(name).name == name for name in shards.values()):
        raise ValueError(f"{index} holds no 'weight_map' of file names beside it")
    return [folder / name for name in sorted(set(shards.values()))]


def _read_json_object(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that diffusers has saved (such as .../transformer)")
    return _json_object(path.read_text(encoding="utf-8"), str(path))


def read_backbone(path: Path) -> tuple[WanConfig, Weights]:
    """Read and validate the header of a Wan backbone in either layout.

    The head width is 128 unless a diffusers ``config.json`` or the file's metadata (``config``: ``{"transformer":
    {"num_heads": ...}}``) says otherwise.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weights` and :func:`check_shapes`.
    """
    weights = read_weights(path)
    if weights.names is not BACKBONE:
        raise ValueError(f"{path.name} is a {weights.names.kind}, not a Wan backbone")
    config = backbone_config(weights)
    check_shapes(weights.shapes, backbone_shapes(config), path.name)
    return config, weights


def backbone_config(weights: Weights) -> WanConfig:
    """Shape of a backbone, read from its tensors.

    Raises:
        ValueError: tensors that give the shape are missing, or the number of heads does not fit.
    """
    shapes = weights.shapes
    try:
        dim, in_dim, *patch = shapes["patch_embedding.weight"]
        patch_elements = torch.Size(patch).numel()
        ffn_dim = shapes["blocks.0.ffn.0.weight"][0]
        text_dim, freq_dim = (shapes[f"{name}_embedding.0.weight"][1] for name in ("text", "time"))
        out_dim = shapes["head.head.weight"][0] // patch_elements
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{weights.name} is an incomplete Wan backbone ({error}): fetch it again") from error
    heads = _heads(weights, dim)
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        raise ValueError(f"{weights.name}: {heads!r} attention heads do not divide its width {dim}")
    return WanConfig(
        dim=dim,
        ffn_dim=ffn_dim,
        num_heads=heads,
        num_layers=len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        in_dim=in_dim,
        out_dim=out_dim,
        text_dim=text_dim,
        freq_dim=freq_dim,
        patch_size=tuple(patch),
        has_image_input="img_emb.proj.0.weight" in shapes,
    )


def _heads(weights: Weights, dim: int) -> object:
    if "num_attention_heads" in weights.config:
        return weights.config["num_attention_heads"]
    told = _metadata_config(weights.metadata, weights.name).get("transformer")
    return told.get("num_heads", dim // DEFAULT_HEAD_DIM) if isinstance(told, dict) else dim // DEFAULT_HEAD_DIM


def backbone_shapes(config: WanConfig) -> dict[str, tuple[int, ...]]:
    """Every original key and shape of a backbone, without allocating it."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in WanModel(config).state_dict().items()}


def diffusers_backbone_config(config: WanConfig) -> dict[str, object]:
    """What ``WanTransformer3DModel`` of diffusers is made from."""
    return {
        "patch_size": list(config.patch_size),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.dim // config.num_heads,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "eps": config.eps,
        "image_dim": IMAGE_FEATURES if config.has_image_input else None,
        "added_kv_proj_dim": config.dim if config.has_image_input else None,
    }


def read_vae(path: Path) -> tuple[int, Weights]:
    """Read and validate the header of a Wan 2.1 VAE in either layout.

    Returns:
        Its width (96 in the published one; everything else of it is fixed) and its weights.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_weights` and :func:`check_shapes`.
    """
    weights = read_weights(path)
    if weights.names is not VAE:
        raise ValueError(f"{path.name} is a {weights.names.kind}, not a Wan 2.1 VAE")
    width = weights.shapes["decoder.head.0.gamma"][0]
    check_shapes(weights.shapes, vae_shapes(width), path.name)
    return width, weights


def vae_shapes(width: int) -> dict[str, tuple[int, ...]]:
    """Every original key and shape of a Wan 2.1 VAE, without allocating it."""
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        net = AutoencoderKLWan(base_dim=width)
    return {VAE.to_original(key): tuple(value.shape) for key, value in net.state_dict().items()}


def convert(source: Path, out: Path) -> str:
    """Turn a Wan backbone or VAE from one layout into the other; tensors keep their bits and dtypes.

    An original file becomes a folder that diffusers opens (``config.json`` and one safetensors file); a file or folder of
    diffusers becomes one file with the original keys. Memory stays at one tensor.

    Returns:
        What was converted, in words.

    Raises:
        FileNotFoundError, ValueError: the source is missing or neither network, or ``out`` is of the wrong kind.
    """
    weights = read_weights(source)
    if weights.names is BACKBONE:
        shape, _ = read_backbone(source)
        model_class, settings = "WanTransformer3DModel", diffusers_backbone_config(shape)
    else:
        width, _ = read_vae(source)
        model_class, settings = "AutoencoderKLWan", {"base_dim": width}
    if (out.suffix == ".safetensors") != weights.diffusers:
        wanted = "a file name that ends in .safetensors" if weights.diffusers else "the name of a folder"
        raise ValueError(f"{source.name} has the {'diffusers' if weights.diffusers else 'original'} layout: give {wanted}")
    metadata = weights.metadata
    if weights.diffusers:
        if out.exists() and any(out.samefile(path) for path, _ in weights.where.values()):
            raise ValueError(f"{out.name} is the source itself: give another name")
        if weights.names is BACKBONE and shape.num_heads * DEFAULT_HEAD_DIM != shape.dim:
            metadata = {"config": json.dumps({"transformer": {"num_heads": shape.num_heads}}), **metadata}
        _write_layout(weights, out, lambda key: key, metadata)
    else:
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} is not empty: what lies there could be taken for a part of the network; give a new folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_layout(weights, out / DIFFUSERS_WEIGHTS, weights.names.to_diffusers, metadata)
        text = json.dumps({"_class_name": model_class, **settings}, indent=2) + "\n"
        write_atomically(out / DIFFUSERS_CONFIG, lambda part: part.write_text(text, encoding="utf-8"))
    layouts = ("diffusers", "original") if weights.diffusers else ("original", "diffusers")
    return f"{len(weights.where)} tensors of a {weights.names.kind}, {layouts[0]} layout to {layouts[1]}"


def _write_layout(weights: Weights, out: Path, rename: Callable[[str], str], metadata: dict[str, str]) -> None:
    original = {rename(key): key for key in weights.where}
    with weights.reader() as tensor:
        write_safetensors(
            out,
            ((name, weights.dtypes[key], weights.shapes[key]) for name, key in original.items()),
            lambda name: tensor(original[name]),
            metadata,
        )


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
    convert_command = commands.add_parser("convert", help="turn a Wan backbone or VAE into the diffusers layout, or back")
    convert_command.add_argument("source", type=Path, help="original .safetensors file, or a file or folder of diffusers")
    convert_command.add_argument("out", type=Path, help="folder to write (to diffusers), or .safetensors file (back)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "merge":
            count = merge_overlay(options.base, options.overlay, options.out)
            done = f"{count} self-attention tensors of {options.overlay.name} merged into {options.base.name}"
        else:
            done = convert(options.source, options.out)
    except (ValueError, OSError) as error:
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return 1
    print(f"{options.out}: {done}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
