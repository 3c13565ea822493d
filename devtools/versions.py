"""What the tests run on, in one line: Python, the build of torch, and the libraries whose releases matter.

``python -m devtools.versions`` prints it; ``python dev.py test`` does so before the tests.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

LIBRARIES = {
    "av": "av",
    "numpy": "numpy",
    "Pillow": "Pillow",
    "OpenCV": "opencv-python-headless",
    "diffusers": "diffusers",
    "transformers": "transformers",
    "controlnet-aux": "controlnet-aux",
    "scipy": "scipy",
    "accelerate": "accelerate",
}
"""How each is called, and its distribution."""


def torch_build() -> str:
    """torch's version, what it was built for, and whether that is there."""
    if torch.version.hip or torch.version.cuda:
        kind = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"{torch.__version__} ({kind}, {f'{gpus} GPUs' if gpus else 'no GPU'})"
    return f"{torch.__version__} (CPU build)"


def versions() -> str:
    """The line."""
    parts = [f"Python {platform.python_version()} in {Path(sys.prefix).name}", f"torch {torch_build()}"]
    for name, distribution in LIBRARIES.items():
        try:
            parts.append(f"{name} {version(distribution)}")
        except PackageNotFoundError:
            parts.append(f"{name} missing")
    return ", ".join(parts)


if __name__ == "__main__":
    print(versions(), flush=True)
