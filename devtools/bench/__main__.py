"""``python dev.py bench NAME``: choose a benchmark."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "step": "one model evaluation with control against the plain backbone",
    "controls": "memory and time of making controls, by length of the driving video",
    "tracks": "point tracks against exact ones, and the time of drawing them",
    "long": "memory, time and disk of a run by its number of clips, and what the loop costs beside the model",
    "clip-io": "what a finished clip costs beside the model, on the critical path and in all",
    "interrupts": "seconds from an interrupt to the end of the prompt, in each long stage",
    "faults": "kills at random moments, each resumed, each equal to the run without",
    "ablation": "the papers' four answers to drift, each switched off in turn, with the tiny model",
}


def main(arguments: list[str]) -> int:
    """Command line; returns the exit code."""
    if not arguments or arguments[0] not in BENCHMARKS:
        print("usage: python dev.py bench NAME [options]\n")
        for name, what in BENCHMARKS.items():
            print(f"  {name:<10} {what}")
        return 0 if arguments in (["-h"], ["--help"]) else 2
    return importlib.import_module(f"devtools.bench.{arguments[0].replace('-', '_')}").main(arguments[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
