"""Headers of safetensors files, read and checked without the weights; and files written one tensor at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..disk.atomic import write_atomically

MAX_NAMED = 6
"""Keys that an error message names before it counts the rest."""

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


def json_object(text: str, what: str) -> dict:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object (it is a {type(value).__name__})")
    return value


def check_shapes(found: Shapes, expected: Shapes, name: str) -> None:
    """Refuse a state dict that is not exactly what is expected.

    Raises:
        ValueError: naming the missing, unexpected and wrongly shaped keys.
    """
    problems = [
        named_keys("missing", sorted(expected.keys() - found.keys())),
        named_keys("unexpected", sorted(found.keys() - expected.keys())),
        named_keys(
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


def named_keys(what: str, keys: list[str]) -> str:
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


def layout_of(file: WeightFile, canonical: Iterable[tuple[str, str]]) -> Layout:
    keys: dict[str, str] = {}
    for stored, key in canonical:
        if key in keys:
            raise ValueError(f"{file.path.name} holds {key} twice, as {keys[key]} and as {stored}")
        keys[key] = stored
    return Layout(file, keys)


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
