"""The three files of LongVie-Tiny from what the trainer has exported.

``python -m devtools.pack_tiny --backbone backbone.safetensors [--overlay dit.safetensors] --control control.safetensors
--vae FOLDER`` writes them in float16, in the key layouts that the host's loaders open. Equal exports give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from devtools.tiny import BACKBONE_FILE, CONTROL_FILE, LONGVIE_TINY, VAE_FILE
from longvie_core.backends.diffusers.sampler import check_fit
from longvie_core.backends.diffusers.weights import load_backbone, load_control, load_vae, original_state
from longvie_core.weights.write import write_safetensors

MAX_BYTES = 18_000_000
"""What all files together may take in the repository."""


@dataclass(frozen=True)
class Network:
    """Weights under the keys that they are published with, and what the tensors do not tell: text metadata ``config``."""

    weights: Mapping[str, Tensor]
    config: Mapping[str, object]


def networks(backbone: Path, overlay: Path | None, control: Path, vae: Path) -> dict[str, Network]:
    """Read the exports; file below ``models`` -> what goes into it.

    Args:
        backbone: ``backbone.safetensors``.
        overlay: ``dit.safetensors``, whose self-attention takes the place of the backbone's.
        control: ``control.safetensors``.
        vae: folder in diffusers' layout, or an original file.

    Raises:
        FileNotFoundError, ValueError: a file is missing, of the wrong kind or incomplete, or the networks do not fit.
    """
    wan, streams = load_backbone(backbone, overlay), load_control(control)
    check_fit(wan, streams)
    heads = {"transformer": {"num_heads": wan.config.num_attention_heads}}
    return {
        BACKBONE_FILE: Network(original_state(wan), heads),
        CONTROL_FILE: Network(streams.state_dict(), {"head_dim": streams.config.head_dim}),
        VAE_FILE: Network(original_state(load_vae(vae)), {}),
    }


def halved(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights in float16, sorted by key.

    Raises:
        ValueError: naming a tensor that holds NaN or infinity, or a number beyond float16 (65,504).
    """
    made = {key: weights[key].half() for key in sorted(weights)}
    wrong = [key for key, value in made.items() if not torch.isfinite(value).all()]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ValueError(f"{name}: {wrong[0]}{more} would hold NaN or infinity in float16: do not ship these weights")
    return made


def write_file(path: Path, network: Network) -> int:
    """Write one file; returns its size in bytes."""
    weights = halved(network.weights, path.name)
    metadata = {"config": json.dumps(network.config)} if network.config else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = ((key, "F16", tuple(value.shape)) for key, value in weights.items())
    write_safetensors(path, entries, weights.__getitem__, metadata)
    return path.stat().st_size


def pack(found: Mapping[str, Network], models: Path) -> dict[str, int]:
    """Write all files below ``models``, or none; returns their sizes in bytes.

    Raises:
        ValueError: weights that are not finite, or files that together are larger than :data:`MAX_BYTES`.
    """
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".pack-", dir=models) as folder:
        sizes = {file: write_file(Path(folder) / file, network) for file, network in found.items()}
        total = sum(sizes.values())
        if total > MAX_BYTES:
            raise ValueError(f"the files take {total:,} bytes together, more than {MAX_BYTES:,}: train a smaller model")
        for file in found:
            (models / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / file).replace(models / file)
    return sizes


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devtools.pack_tiny", description=__doc__)
    parser.add_argument("--backbone", type=Path, required=True, help="backbone.safetensors")
    parser.add_argument("--overlay", type=Path, help="dit.safetensors of a later stage")
    parser.add_argument("--control", type=Path, required=True, help="control.safetensors")
    parser.add_argument("--vae", type=Path, required=True, help="folder of the VAE's export")
    parser.add_argument("--out", type=Path, default=LONGVIE_TINY, help="folder to write (models/longvie-tiny)")
    options = parser.parse_args(arguments)
    try:
        sizes = pack(networks(options.backbone, options.overlay, options.control, options.vae), options.out)
    except (ValueError, OSError) as error:
        print(f"nothing is written: {error}", file=sys.stderr)
        return 1
    for file, size in sizes.items():
        print(f"{options.out / file}: {size:,} bytes")
    print(f"{sum(sizes.values()):,} bytes in all, of {MAX_BYTES:,}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
