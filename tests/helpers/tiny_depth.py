"""A depth network small enough to be made by a test."""

from __future__ import annotations

from pathlib import Path

import torch


def tiny_depth_checkpoint(folder: Path) -> None:
    """A real Depth Anything of a few thousand seeded weights, as transformers saves it."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=56, out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )  # fmt: skip
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "head_hidden_size": 4}
    torch.manual_seed(0)
    network = DepthAnythingForDepthEstimation(DepthAnythingConfig(backbone_config=backbone, **sizes))
    for parameter in network.head.parameters():
        torch.nn.init.uniform_(parameter)  # so that its rectifiers let something through
    network.save_pretrained(folder)
    size = {"height": 56, "width": 56}
    DPTImageProcessor(size=size, keep_aspect_ratio=True, ensure_multiple_of=14).save_pretrained(folder)
