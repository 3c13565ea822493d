"""LongVie-Tiny's size: the same networks as for Wan2.1-I2V-14B, small enough for one core of a laptop."""

from __future__ import annotations

from ..model.dual_control import DualControlConfig
from ..model.wan import WanConfig

TINY_BACKBONE = WanConfig(dim=256, ffn_dim=768, num_heads=2, num_layers=4, has_image_input=False)
TINY_CONTROL = DualControlConfig(dim=256, control_dim=128, ffn_dim=384, num_heads=1, num_layers=3, image=False)

TINY_VAE_WIDTH = 8
"""Channels of the VAE's first layer; 96 in Wan 2.1. Everything else of its architecture is fixed by the host."""
