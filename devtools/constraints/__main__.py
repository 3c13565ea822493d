"""Record what is installed here as the versions that the tests passed with: the last step of ``python dev.py constraints``."""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

import dev

APART = re.compile(r"torch|torchvision|torchaudio|triton|(?:nvidia|cuda)-.*|pip|setuptools|wheel")
"""What dev.py pins itself, what torch brings for its build, and what Python brings."""

HEADER = """# What the tests passed with on Python {python}, beside ComfyUI {host}. `python dev.py constraints` renews it.
# Only dev.py's own environment is made of these: nothing here touches the packages of a ComfyUI that is installed already.
"""


def installed() -> list[str]:
    """``name==version`` of every package of this environment, sorted; local builds (``+cpu``) by their public version."""
    pairs = {dev.package_name(one.metadata["Name"]): one.version.partition("+")[0] for one in distributions()}
    return [f"{name}=={version}" for name, version in sorted(pairs.items()) if not APART.fullmatch(name)]


def main() -> int:
    """Command line; returns the exit code."""
    path: Path = dev.constraints_file(sys.version_info[:2])
    header = HEADER.format(python=".".join(map(str, sys.version_info[:2])), host=dev.HOST_VERSION)
    path.write_text(header + "\n".join(installed()) + "\n", encoding="utf-8")
    print(f"{path.relative_to(dev.ROOT)}: {len(installed())} versions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
