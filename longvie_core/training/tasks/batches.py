"""What a step of control training learns from: which variant of each clip it sees, the latents, noise and timesteps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...model.conditioning import control_condition, image_condition
from ..data.latents import ClipLatents
from ..data.spec import Variant
from ..networks.controlled_backbone import Conditions


class ConditionLatents(NamedTuple):
    """The latents that :class:`Conditions` consist of, [B, 16, .., h, w] in float16.

    Args:
        image: first frame, then grey.
        dense, sparse: controls.
        dense_first, sparse_first: their first frame, then grey.
        dense_strength, sparse_strength, history, text, vision: see :class:`Conditions`.
    """

    image: Tensor
    dense: Tensor
    dense_first: Tensor
    sparse: Tensor
    sparse_first: Tensor
    dense_strength: Tensor
    sparse_strength: Tensor
    history: Tensor | None
    text: Tensor
    vision: Tensor | None

    def conditions(self) -> Conditions:
        """In float32, with the masks."""
        return Conditions(
            image=image_condition(self.image.float()),
            dense=control_condition(self.dense.float(), self.dense_first.float()),
            sparse=control_condition(self.sparse.float(), self.sparse_first.float()),
            dense_strength=self.dense_strength,
            sparse_strength=self.sparse_strength,
            history=None if self.history is None else self.history.float(),
            text=self.text,
            vision=None if self.vision is None else self.vision.float(),
        )


class Batch(NamedTuple):
    """What a step learns from.

    Args:
        latents: what the clips are conditioned on.
        data: float16 latents of the clips [B, 16, f, h, w].
        noise: on them.
        timestep, sigma, weight: of each clip, [B].
        degraded: which clips have a degraded start frame, bool [B]; ``None`` where the stage never degrades any.
    """

    latents: ConditionLatents
    data: Tensor
    noise: Tensor
    timestep: Tensor
    sigma: Tensor
    weight: Tensor
    degraded: Tensor | None


@dataclass(frozen=True)
class SampleView:
    """How a step sees a clip.

    Args:
        row: the clip's number in its source.
        start, depth: which variant of start frame and history, and of the depth.
        degraded: whether the start frame differs from the clean one.
        dense, sparse: weights of the streams.
    """

    row: int
    start: Variant = None
    depth: Variant = None
    degraded: bool = False
    dense: float = 1.0
    sparse: float = 1.0


def read_views(
    latents: ClipLatents, views: Sequence[SampleView], history: int, text: Callable[[str], Tensor]
) -> ConditionLatents:
    """The latents of clips, each in its view.

    Args:
        latents: of the source's clips.
        views: of the B clips.
        history: frames of history of all of them; 0 = none.
        text: embedding [1, L, text_dim] of a caption.
    """
    starts, depths = [view.start for view in views], [view.depth for view in views]
    clean = [None] * len(views)
    rows = [view.row for view in views]

    def read(name: str, variants: Sequence[Variant]) -> Tensor:
        return _read_variants(latents, name, rows, variants)

    return ConditionLatents(
        image=read("image", starts),
        dense=read("dense", depths),
        dense_first=read("dense_first", depths),
        sparse=read("sparse", clean),
        sparse_first=read("sparse_first", clean),
        dense_strength=torch.tensor([view.dense for view in views]),
        sparse_strength=torch.tensor([view.sparse for view in views]),
        history=read(f"history_{history}", starts) if history else None,
        text=torch.cat([text(latents.source.text(row)) for row in rows]),
        vision=read("vision", starts) if latents.spec.vision else None,
    )


def _read_variants(latents: ClipLatents, name: str, rows: Sequence[int], variants: Sequence[Variant]) -> Tensor:
    """float16 [len(rows), ...], each clip's tensor from the table of its variant; clips of one table are read at once."""
    values: Tensor | None = None
    for variant in set(variants):
        places = [place for place, other in enumerate(variants) if other == variant]
        part = latents.table(variant).read_half(name, [rows[place] for place in places])
        if values is None:
            values = part.new_empty((len(rows), *part.shape[1:]))
        values[places] = part
    return values
