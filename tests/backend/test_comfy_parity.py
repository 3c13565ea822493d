"""The backend's forward on the host's own classes equals the plain torch one on the same weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from longvie_core.model.dual_control import Strengths
from tests.helpers.harness import HOST_TOLERANCE, Rig, evaluate, largest, make_sample


@pytest.mark.parametrize("history", [0, 1, 2, 5])
@pytest.mark.parametrize("timestep", [1000.0, 512.3, 3.7])
def test_forward_equals_plain_torch(rig: Rig, history: int, timestep: float) -> None:
    sample = make_sample(rig, history=history, timestep=timestep)
    expected = rig.velocity(sample)
    assert largest(evaluate(rig.controlled(), sample) - expected) < HOST_TOLERANCE
    assert largest(evaluate(rig.model, replace(sample, history=None)) - expected) > 0.01  # the control acts


@pytest.mark.parametrize("history", [0, 2])
def test_a_batch_equals_its_samples(rig: Rig, history: int) -> None:
    """Positive and negative go through the model in one batch: nothing of one may reach the other."""
    batch = make_sample(rig, batch=2, history=history)
    together = evaluate(rig.controlled(), batch)
    for index in range(2):
        single = batch.only(index)
        assert largest(together[index : index + 1] - evaluate(rig.controlled(), single)) < HOST_TOLERANCE
        assert largest(together[index : index + 1] - rig.velocity(single)) < HOST_TOLERANCE


def repeat_edge(latents: Tensor) -> Tensor:
    """Even height and width, filled as the host fills them: from the other side."""
    height, width = latents.shape[-2:]
    latents = torch.cat([latents, latents[..., : height % 2, :]], dim=-2)
    return torch.cat([latents, latents[..., : width % 2]], dim=-1)


@pytest.mark.parametrize("history", [0, 2])
@pytest.mark.parametrize("size", [(5, 6), (4, 7), (5, 7), (1, 1)])
def test_odd_sizes_are_padded(rig: Rig, size: tuple[int, int], history: int) -> None:
    sample = make_sample(rig, (3, *size), history=history)
    pictures = {name: getattr(sample, name) for name in ("x", "dense", "sparse", "history")}
    even = replace(sample, **{name: repeat_edge(value) for name, value in pictures.items() if value is not None})
    ours = evaluate(rig.controlled(), sample)
    assert ours.shape[-2:] == size
    assert largest(ours - rig.velocity(even)[..., : size[0], : size[1]]) < HOST_TOLERANCE


@pytest.mark.parametrize("absent", ["dense", "sparse"])
@pytest.mark.parametrize("history", [0, 2])
def test_one_modality_alone(rig: Rig, absent: str, history: int) -> None:
    sample = make_sample(rig, history=history)
    expected = rig.velocity(sample, Strengths(**{absent: 0.0}))
    assert largest(evaluate(rig.controlled(), replace(sample, **{absent: None})) - expected) < HOST_TOLERANCE


def test_a_single_frame(rig: Rig) -> None:
    sample = make_sample(rig, (1, 2, 2), history=1)
    assert largest(evaluate(rig.controlled(), sample) - rig.velocity(sample)) < HOST_TOLERANCE


def test_history_alone_equals_plain_torch(tiny: Rig) -> None:
    """History without any control: strength 0 on both."""
    sample = make_sample(tiny, history=2)
    ours = evaluate(tiny.controlled(dense=0, sparse=0), sample)
    assert largest(ours - tiny.velocity(sample, Strengths(0, 0))) < HOST_TOLERANCE
    assert largest(ours - evaluate(tiny.model, replace(sample, history=None))) > 0.01
