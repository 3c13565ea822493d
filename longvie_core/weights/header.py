"""Headers of safetensors files: keys, shapes and metadata, read and checked without reading a tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

MAX_NAMED = 6
"""Keys that an error message names before it counts the rest."""

DEFAULT_HEAD_DIM = 128
"""Width of an attention head in all of Wan's and LongVie's published networks, which no shape tells."""

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


def json_object(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object; ``what`` names it in the ValueError that anything else raises."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not a JSON object ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object (it is a {type(value).__name__})")
    return value


def metadata_config(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """The JSON object under ``config`` in a file's metadata, which says what shapes cannot; empty where there is none.

    Raises:
        ValueError: it is something else; ``name`` is the file's.
    """
    return json_object(metadata.get("config", "{}"), f"{name}: its metadata 'config'")


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
    """``what``, how many keys, and the first :data:`MAX_NAMED` of them, for an error message; empty where there are none."""
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
    """The layout of a file, from pairs of each key in it and that key's canonical form.

    Raises:
        ValueError: two keys of the file have the same canonical form.
    """
    keys: dict[str, str] = {}
    for stored, key in canonical:
        if key in keys:
            raise ValueError(f"{file.path.name} holds {key} twice, as {keys[key]} and as {stored}")
        keys[key] = stored
    return Layout(file, keys)
