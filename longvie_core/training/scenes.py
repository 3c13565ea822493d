"""``python -m longvie_core.training.scenes FOLDER``: render training videos of the procedural world."""

from __future__ import annotations

import argparse
from pathlib import Path

from .data.scenes import SceneSettings, open_set


def main() -> None:
    """Command line: render a set."""
    parser = argparse.ArgumentParser(description="Render training videos of the procedural world; goes on where it stopped.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--videos", type=int, default=800)
    parser.add_argument("--first-seed", type=int, default=SceneSettings.first_seed)
    parser.add_argument("--processes", type=int, default=1, help="how many render at once")
    arguments = parser.parse_args()
    scenes = open_set(arguments.folder, SceneSettings(first_seed=arguments.first_seed), arguments.videos)
    for video in scenes.render(range(arguments.videos), arguments.processes):
        print(f"video {video + 1} of {arguments.videos}", flush=True)


if __name__ == "__main__":
    main()
