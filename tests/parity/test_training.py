"""Training losses and their gradients against the reference's: a small set kept here, the whole set where it is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from devtools.parity.network import load_network
from devtools.parity.rows import Row, Tensors, difference, read_json, read_tensors
from longvie_core.model.conditioning import history_input
from longvie_core.model.dual_control import velocity
from longvie_core.model.schedule import add_noise, nearest_step
from longvie_core.training.losses import (
    DegradedSamples,
    TimestepDraw,
    TrainingSchedule,
    batch_terms,
    high_pass,
    loss_terms,
    low_pass,
    training_schedule,
    velocity_target,
)
from tests.helpers.places import RECORDED, SHARED

WHOLE = SHARED / "golden"
RELATIVE = 1e-5
NORM_RELATIVE = 1e-4
"""Of each gradient's norm by itself, the smallest ones too."""

FLAG = torch.tensor([True])

whole = pytest.mark.skipif(not WHOLE.is_dir(), reason="the reference's whole set is not beside this checkout")
folders = pytest.mark.parametrize("golden", [pytest.param(RECORDED, id="small"), pytest.param(WHOLE, id="whole", marks=whole)])


def relative(ours: Tensor | float, theirs: Tensor | float) -> float:
    """Largest difference as a share of the reference's largest value."""
    return difference(ours, theirs) / torch.as_tensor(theirs).abs().max().item()


def failures(rows: Iterator[Row]) -> list[str]:
    rows = list(rows)
    assert rows
    return [str(row) for row in rows if not row.passed]


def degraded_samples(case: dict, tensors: Tensors) -> DegradedSamples | None:
    """What the case's name says: ``deg1`` a degraded first frame, ``hist1`` a history."""
    if "_deg0" in case["tag"]:
        return None
    history = "_hist1" in case["tag"]
    return DegradedSamples(
        FLAG, tensors["input_deg_image"], torch.tensor([history]), tensors["input_history_image"] if history else None
    )


def reference_draw(schedule: TrainingSchedule, ids: Tensor) -> TimestepDraw:
    """The draw of ``ids`` as the reference makes it in bfloat16: the timestep is rounded first, which shifts the step."""
    timestep = schedule.timesteps[ids].bfloat16().to(schedule.timesteps.dtype)
    nearest = nearest_step(schedule.timesteps, timestep)
    return TimestepDraw(timestep, schedule.sigmas[nearest], schedule.weights[nearest])


def draw_of(case: dict) -> TimestepDraw:
    schedule, ids = training_schedule(), torch.tensor([case["timestep_id"]])
    return reference_draw(schedule, ids) if case["tag"].startswith("bf16") else schedule.at(ids)


def loss_of(prediction: Tensor, noise: Tensor, data: Tensor, degraded: DegradedSamples | None, draw: TimestepDraw) -> Tensor:
    return sum(batch_terms(loss_terms(prediction, noise, data, degraded), draw.weight).values())


def loss_rows(golden: Path) -> Iterator[Row]:
    """Timesteps, sigmas, weights, noisy latents, losses and gradients on a given prediction."""
    tensors = read_tensors(golden / "losses.safetensors")
    data, noise, prediction = (tensors[name] for name in ("input_latents", "noise", "noise_pred"))
    yield Row("low pass", difference(low_pass(prediction[:, :, :1]), tensors["lowpass_noise_pred_first"]), 1e-6)
    yield Row("high pass", difference(high_pass(prediction[:, :, :1]), tensors["highpass_noise_pred_first"]), 1e-6)
    for case in read_json(golden / "losses.json")["cases"]:
        tag, draw = case["tag"], draw_of(case)
        for ours, theirs in (("timestep", "timestep_used"), ("sigma", "sigma_used"), ("weight", "training_weight")):
            yield Row(f"{tag} {ours}", relative(getattr(draw, ours), torch.tensor([case[theirs]])), RELATIVE)
        if f"latents.{tag}" in tensors:
            ours = add_noise(data, noise, draw.sigma)
            yield Row(f"{tag} noisy latents", difference(ours, tensors[f"latents.{tag}"]), 1e-6)
        given = prediction.clone().requires_grad_()
        loss = loss_of(given, noise, data, degraded_samples(case, tensors), draw)
        yield Row(f"{tag} loss", relative(loss.detach(), case["loss"]), RELATIVE)
        if f"grad_noise_pred.{tag}" in tensors:
            loss.backward()
            yield Row(f"{tag} gradient", relative(given.grad, tensors[f"grad_noise_pred.{tag}"]), RELATIVE)


def scale_dense_embedding(control: nn.Module, scale: float) -> None:
    """The reference's own weakening: it scales the dense patch embedding in front of the dense input linear."""
    control.control_initial_combine_linear_dense.register_forward_pre_hook(lambda _module, given: (given[0] * scale,))


def end_to_end_rows(golden: Path, case: str) -> Iterator[Row]:
    """Loss and gradients of every control parameter through the whole network, degraded, with history."""
    meta = read_json(golden / "losses.json")
    tensors = {
        key.removeprefix("e2e."): value
        for key, value in read_tensors(golden / "losses.safetensors").items()
        if key.startswith("e2e.")
    }
    backbone, control = load_network(golden, "dual_A", read_json(golden / "dual.json")["dual_A"]["config"], torch.float32)
    backbone.requires_grad_(False)
    if case.startswith("densescale"):
        scale_dense_embedding(control, float(case.removeprefix("densescale")))
    draw = training_schedule().at(torch.tensor([meta["config"]["ids"][1]]))
    data, noise = tensors["latents0"], tensors["noise"]
    prediction = velocity(
        backbone,
        control,
        torch.cat([add_noise(data, noise, draw.sigma), tensors["y"]], dim=1),
        draw.timestep,
        tensors["context"],
        tensors["clip"].float(),
        tensors["dense"],
        tensors["sparse"],
        history_input(tensors["history"]),
    )
    loss = loss_of(prediction, noise, data, DegradedSamples(FLAG, tensors["deg"], FLAG, tensors["hist_img"]), draw)
    loss.backward()
    expected = meta["e2e"][case]
    yield Row(f"{case} loss", relative(loss.detach(), expected["loss"]), RELATIVE)
    gradients = {name: value.grad for name, value in control.named_parameters()}
    assert gradients.keys() == expected["grad_norms"].keys()
    for name, norm in expected["grad_norms"].items():
        yield Row(f"{case} norm {name}", abs(gradients[name].norm().item() / norm - 1), NORM_RELATIVE)
    for name, gradient in gradients.items():
        if case == "noscale" and f"grad.{name}" in tensors:
            yield Row(f"{case} gradient {name}", relative(gradient, tensors[f"grad.{name}"]), RELATIVE)


@folders
def test_losses_and_gradients_of_a_given_prediction(golden: Path) -> None:
    assert failures(loss_rows(golden)) == []


@whole
@pytest.mark.parametrize("case", ["noscale", "densescale1.125"])
def test_end_to_end(case: str) -> None:
    assert failures(end_to_end_rows(WHOLE, case)) == []


def test_the_references_rounding_shifts_the_step() -> None:
    draw = reference_draw(training_schedule(), torch.tensor([10, 500]))
    assert draw.timestep.tolist() == [996.0, 832.0]
    assert draw.sigma[0].item() == pytest.approx(0.9959349632, abs=1e-6)
    assert training_schedule().at(torch.tensor([10])).sigma.item() == pytest.approx(0.9979838133, abs=1e-6)


def test_a_clean_batch_is_the_control_stages_loss() -> None:
    """The reference's first stage has a loss function of its own; on clean samples it is the same number."""
    tensors = read_tensors(RECORDED / "losses.safetensors")
    draw = training_schedule().at(torch.tensor([500]))
    loss = loss_of(tensors["noise_pred"], tensors["noise"], tensors["input_latents"], None, draw)
    assert relative(loss, tensors["loss.control_stage"][0]) <= RELATIVE


def test_a_wrong_formula_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import longvie_core.training.losses as losses

    monkeypatch.setattr(losses, "velocity_target", lambda noise, data: velocity_target(noise, data) * 1.001)
    assert failures(loss_rows(RECORDED))
