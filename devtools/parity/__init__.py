"""The project against tensors that the reference implementation computed, one row a case.

Configurations, shapes and seeds come from the JSON files of the folder that holds the tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from devtools.parity.backends import diffusers_rows, diffusers_vae_rows, host_rows
from devtools.parity.conditioning import conditioning_rows
from devtools.parity.controls import depth_rows, track_rows
from devtools.parity.loop import loop_rows
from devtools.parity.network import network_rows
from devtools.parity.rows import F32_TOLERANCE, F64_TOLERANCE, Row, read_json
from devtools.parity.schedule import schedule_rows


def all_rows(golden: Path, groups: Iterable[str]) -> Iterator[Row]:
    """Every row of the groups asked for."""
    for group in groups:
        yield from GROUPS[group](golden)


def _networks(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from network_rows(golden, name, torch.float64, F64_TOLERANCE)
        yield from network_rows(golden, name, torch.float32, F32_TOLERANCE)


def _hosts(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from host_rows(golden, name)


def _diffusers(golden: Path) -> Iterator[Row]:
    for name in read_json(golden / "dual.json"):
        yield from diffusers_rows(golden, name)
    if (golden / "embed.json").is_file():  # not in the small set
        yield from diffusers_vae_rows(golden)


GROUPS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "network": _networks,
    "comfy": _hosts,
    "diffusers": _diffusers,
    "schedule": schedule_rows,
    "conditioning": conditioning_rows,
    "loop": loop_rows,
    "depth": depth_rows,
    "tracks": track_rows,
}
"""Name of a group of comparisons -> its rows, from the folder with the reference's tensors."""
