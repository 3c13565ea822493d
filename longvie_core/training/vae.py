"""``python -m longvie_core.training.vae STAGE SCENES HELD_OUT RUN``: train LongVie-Tiny's VAE."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from .data.scenes import SceneSet
from .loop.settings import TrainSettings
from .loop.trainer import train
from .networks.whole_clip_vae import tiny_vae
from .tasks.vae import Phase, VaeSettings, VaeTask

TINY_TRAINING = TrainSettings(
    steps=2_900,
    warmup=50,
    decay="cosine",
    ema=0.995,
    precision="bf16",
    checkpoint_every=500,
    sheet_every=500,
    log_every=50,
    workers=8,
    graphs=True,
)

TINY_STAGES = {
    "pictures": (
        VaeSettings(
            (
                Phase(1_200, 1, 64, 96, 256, 0.0),
                Phase(2_000, 5, 64, 96, 64, 0.0),
                Phase(2_900, 17, 64, 96, 48, 0.1),
            )
        ),
        TINY_TRAINING,
    ),
    "round-trips": (
        VaeSettings((Phase(150, 1, 64, 96, 128, 1.0, 6), Phase(350, 17, 64, 96, 24, 0.5, 2)), muon_lr=1e-3, adam_lr=5e-4),
        replace(TINY_TRAINING, steps=350, checkpoint_every=400, sheet_every=150),
    ),
}
"""First to encode pictures and clips; then that frames survive being handed from clip to clip. Sized for a GPU."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line: train LongVie-Tiny's VAE."""
    parser = argparse.ArgumentParser(description="Train the VAE of LongVie-Tiny; goes on from the newest checkpoint.")
    parser.add_argument("stage", choices=list(TINY_STAGES))
    parser.add_argument("scenes", type=Path, help="training videos: python -m longvie_core.training.scenes")
    parser.add_argument("held_out", type=Path, help="videos for the sheets")
    parser.add_argument("folder", type=Path, help="checkpoints, log, sheets and the result")
    parser.add_argument("--start", type=Path, help="result to start from; without it from nothing")
    parser.add_argument("--stop-after", type=int, help="leave off after so many steps")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    settings, training = TINY_STAGES[options.stage]
    vae = tiny_vae() if options.start is None else AutoencoderKLWan.from_pretrained(options.start)
    train(
        VaeTask(settings, SceneSet(options.scenes), SceneSet(options.held_out), vae),
        training,
        options.folder,
        options.stop_after,
    )


if __name__ == "__main__":
    main()
