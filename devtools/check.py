"""``python dev.py check``: what can be said of the code without running it. Each check runs, whatever the others say."""

from __future__ import annotations

import subprocess
import sys
import time

CHECKS = {
    "lint": ["-m", "ruff", "check", "."],
    "format": ["-m", "ruff", "format", "--check", "."],
    "imports": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
    "types": ["-m", "mypy"],
}
"""Name of a check -> arguments for Python; all are set up in pyproject.toml."""


def main(arguments: list[str] | None = None) -> int:
    """Run all checks, or those named; returns 1 where one failed."""
    names = (sys.argv[1:] if arguments is None else arguments) or list(CHECKS)
    if unknown := set(names) - CHECKS.keys():
        print(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, *CHECKS[name]], capture_output=True, text=True, encoding="utf-8", check=False)
        print(f"{name}: {'failed' if done.returncode else 'passed'}, {time.perf_counter() - begun:.1f} s", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout + done.stderr, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
