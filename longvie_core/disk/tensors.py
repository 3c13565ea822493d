"""Tensors on disk that say what they are, and are believed only while they hold what they say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .atomic import write_atomically

CLAIM = "longvie"
"""Key of the file's metadata: one alone, since their order is not the same each time that they are written."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a ``.safetensors`` file that :func:`read_tensors` believes under this name; an error leaves nothing behind.

    Raises:
        OSError: the disk is full, for instance.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Bytes first: a full disk is then an OSError and not one of safetensors' own.
    data = save(kept, {CLAIM: f"{path.name} {_content(kept)}"})
    write_atomically(path, lambda part: part.write_bytes(data))


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """Read :func:`write_tensors` back; ``None`` where the file is missing, damaged, another one's, or a link."""
    if not claims_tensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            claim = file.metadata()[CLAIM]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- it is no mapping
    except (OSError, SafetensorError):
        return None
    return tensors if claim == f"{path.name} {_content(tensors)}" else None


def claims_tensors(path: Path) -> bool:
    """Whether there is a whole file that says that it was written under this name; its values are not read."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError):
        return False
    return metadata.get(CLAIM, "").startswith(f"{path.name} ")


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = blake3()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
