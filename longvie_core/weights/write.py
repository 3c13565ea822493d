"""Safetensors files written one tensor at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..disk.atomic import write_atomically

DTYPES = {
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
"""Names of dtypes in safetensors headers."""


def write_safetensors(
    out: Path,
    entries: Iterable[tuple[str, str, tuple[int, ...]]],
    tensor: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file one tensor at a time (the library's own writer wants all of them in memory).

    Args:
        out: written under another name first, then renamed into place.
        entries: (key, safetensors dtype name, shape) of every tensor.
        tensor: ``key -> Tensor``, cast to the entry's dtype here.
        metadata: text metadata of the file.

    Raises:
        ValueError: a dtype that is not among :data:`DTYPES`.
    """
    header: dict[str, dict[str, Any]] = {}
    offset = 0
    for key, dtype, shape in entries:
        if dtype not in DTYPES:
            raise ValueError(f"{key} has dtype {dtype}, which cannot be merged")
        size = DTYPES[dtype].itemsize * torch.Size(shape).numel()
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    # Sorted: the library hands metadata out in another order every time, and equal inputs are to give equal bytes.
    described = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    text = json.dumps({**described, **header}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for key, entry in header.items():
                data = tensor(key).to(DTYPES[entry["dtype"]]).contiguous()
                file.write(data.flatten().view(torch.uint8).numpy())

    write_atomically(out, write)
