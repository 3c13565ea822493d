"""Compare the project with tensors that the reference computed.

``python dev.py parity --golden FOLDER`` prints one row a case with its error and exits non-zero if any misses; ``--only
network,loop`` picks groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from devtools.parity import GROUPS, all_rows


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python dev.py parity", description=__doc__.splitlines()[0])
    parser.add_argument("--golden", type=Path, required=True, help="folder with the reference's tensors")
    parser.add_argument("--only", default=",".join(GROUPS), help=f"groups, comma-separated: {', '.join(GROUPS)}")
    options = parser.parse_args(arguments)
    groups = options.only.split(",")
    if unknown := set(groups) - GROUPS.keys():
        parser.error(f"unknown group {', '.join(sorted(unknown))}: choose from {', '.join(GROUPS)}")
    if not (options.golden / "dual.json").is_file():
        parser.error(f"{options.golden} holds no dual.json: name the folder with the reference's tensors")
    torch.set_grad_enabled(False)
    failed = total = 0
    for row in all_rows(options.golden, groups):
        print(row, flush=True)
        total += 1
        failed += not row.passed
    print(f"parity: {total - failed} of {total} cases within tolerance" + (f", {failed} FAILED" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
