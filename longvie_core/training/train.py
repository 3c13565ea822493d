"""The command ``train``: one stage, from the latents that ``prepare`` made."""

from __future__ import annotations

import argparse
from functools import lru_cache

import torch
from torch import Tensor

from ..backends.diffusers.weights import load_backbone, load_control
from ..backends.processes import DTYPES
from .inputs import codec_of, held_out_source, latents_of, texts_of, training_source
from .loop.trainer import train
from .networks.controlled_backbone import (
    ControlledBackbone,
    control_from_backbone,
    half_width_config,
    require_gradients,
    tiny_network,
)
from .stages import EVERYTHING, Stage
from .tasks.control import ControlTask
from .tiny import TINY_BACKBONE, TINY_CONTROL


def train_stage(options: argparse.Namespace, stage: Stage) -> None:
    """Train one stage, from its newest checkpoint where there is one."""
    source, held_out = training_source(options), held_out_source(options)
    latents = latents_of(options, stage, source)
    network = network_of(options, stage)
    texts = texts_of(options)

    def embedding(caption: str) -> Tensor:
        """Of a caption; without an encoder one zero token, which attends like any number of them."""
        found = texts.read(caption)
        return torch.zeros(1, 1, network.backbone.config.text_dim) if found is None else found

    task = ControlTask(
        stage,
        network,
        latents,
        latents_of(options, stage, held_out),
        codec_of(options, source),
        lru_cache(maxsize=256)(embedding),
    )
    train(task, stage.training, options.run, options.stop_after)


def network_of(options: argparse.Namespace, stage: Stage) -> ControlledBackbone:
    """What a stage starts from: weights of files, half-width weights of the backbone, or new ones if everything is trained."""
    torch.manual_seed(stage.training.seed)
    if options.backbone is None:
        if stage.trainable != EVERYTHING:
            raise ValueError("give the pretrained backbone with --backbone: this stage trains a control network for it")
        network = tiny_network(TINY_BACKBONE, TINY_CONTROL)
    else:
        backbone = load_backbone(options.backbone, options.overlay, dtype=DTYPES[options.precision], device=options.device)
        if options.control is None:
            control = control_from_backbone(backbone, half_width_config(backbone))
        else:
            control = load_control(options.control, device=options.device)
        network = ControlledBackbone(backbone, control)
    if options.text_encoder is None and network.backbone.config.image_dim is None:  # one zero token is all the text there is
        network.bypass_text_attention()
    require_gradients(network, stage.trainable)
    for value in network.parameters():
        if value.requires_grad:  # float32, whatever the precision of the rest: small steps would be rounded away
            value.data = value.data.float()
    return network
