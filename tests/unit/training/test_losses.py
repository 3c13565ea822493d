"""Training losses against numpy in float64, sample by sample. The reference's own numbers are in tests/parity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from longvie_core.training.losses import (
    DegradedSamples,
    LossWeights,
    batch_terms,
    draw_timesteps,
    frame_weights,
    high_pass,
    loss_terms,
    low_pass,
    training_schedule,
    velocity_target,
)

HEIGHT, WIDTH = 6, 8


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Batch:
    """Prediction, noise, data, degraded image and last history frame of ``size`` samples."""

    def __init__(self, size: int, frames: int) -> None:
        self.prediction, self.noise, self.data = (random(seed, size, 16, frames, HEIGHT, WIDTH) for seed in range(3))
        self.image, self.history = (random(seed, size, 16, 1, HEIGHT, WIDTH) for seed in (3, 4))

    def terms(self, flags: list[bool], has_history: list[bool], weights: LossWeights | None = None) -> dict[str, Tensor]:
        degraded = DegradedSamples(torch.tensor(flags), self.image, torch.tensor(has_history), self.history)
        return loss_terms(self.prediction, self.noise, self.data, degraded, weights)


def resampling(size: int, to: int) -> np.ndarray:
    """Matrix [to, size] of linear interpolation between pixel centres, the edge pixels extended."""
    matrix = np.zeros((to, size))
    for row in range(to):
        position = min(max((row + 0.5) * size / to - 0.5, 0), size - 1)
        left = int(position)
        right = min(left + 1, size - 1)
        matrix[row, left] += 1 - (position - left)
        matrix[row, right] += position - left
    return matrix


def numpy_low_pass(x: np.ndarray) -> np.ndarray:
    height, width = x.shape[-2:]
    rows = resampling(max(1, height // 2), height) @ resampling(height, max(1, height // 2))
    columns = resampling(max(1, width // 2), width) @ resampling(width, max(1, width // 2))
    return np.einsum("ij,...jk,lk->...il", rows, x, columns)


def numpy_loss(prediction, noise, data, image, history) -> float:
    """One degraded sample [16, f, h, w], written out; ``history`` may be None."""
    target = noise - data
    weights = np.array([0.05, 0.325, 0.757] + [1.0] * max(0, prediction.shape[1] - 3))[: prediction.shape[1]]
    first, first_noise, first_data = prediction[:, 0], noise[:, 0], data[:, 0]
    low, wanted = numpy_low_pass(first), numpy_low_pass(first_noise - image[:, 0])
    high = first - low
    clean = first_noise - first_data
    wanted_high = clean - numpy_low_pass(clean)
    loss = (weights[None, :, None, None] * (prediction - target) ** 2).mean()
    loss += 0.2 * ((low - wanted) ** 2).mean() + 0.15 * ((high - wanted_high) ** 2).mean()
    if history is not None:
        loss += 0.5 * ((first - (first_noise - history[:, 0])) ** 2).mean()
    return loss


@pytest.mark.parametrize("size", [(6, 8), (7, 9), (1, 5), (1, 1), (2, 3), (44, 80)])
def test_low_and_high_pass_are_linear_interpolation_and_the_rest(size: tuple[int, int]) -> None:
    x = random(5, 2, 3, 2, *size)
    np.testing.assert_allclose(low_pass(x).numpy(), numpy_low_pass(x.double().numpy()), rtol=0, atol=2e-6)
    torch.testing.assert_close(low_pass(x) + high_pass(x), x)
    constant = torch.full((1, 1, 1, *size), 3.0)
    torch.testing.assert_close(low_pass(constant), constant)
    assert high_pass(constant).abs().max() < 1e-6


def test_frames_are_not_mixed_by_the_low_pass() -> None:
    x = random(6, 1, 2, 3, HEIGHT, WIDTH)
    for frame in range(3):
        assert torch.equal(low_pass(x)[:, :, frame : frame + 1], low_pass(x[:, :, frame : frame + 1]))


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 21, 41])
def test_frame_weights_of_any_number_of_latent_frames(frames: int) -> None:
    got = frame_weights(frames, LossWeights().first_frames, torch.zeros(()))
    expected = ([0.05, 0.325, 0.757] + [1] * 40)[:frames]
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 21])
@pytest.mark.parametrize("history", [False, True])
def test_a_degraded_sample_by_hand(frames: int, history: bool) -> None:
    batch = Batch(1, frames)
    terms = batch.terms([True], [history])
    arrays = [x[0].double().numpy() for x in (batch.prediction, batch.noise, batch.data, batch.image, batch.history)]
    expected = numpy_loss(*arrays[:4], arrays[4] if history else None)
    assert sum(terms.values()).item() == pytest.approx(expected, rel=1e-5)


def test_a_mixed_batch_is_its_samples_one_by_one() -> None:
    flags, has_history = [True, True, False, False], [True, False, True, False]
    batch = Batch(4, 5)
    terms = batch.terms(flags, has_history)
    got = sum(terms.values())
    for index, (flag, past) in enumerate(zip(flags, has_history, strict=True)):
        one = [x[index : index + 1] for x in (batch.prediction, batch.noise, batch.data)]
        degraded = None
        if flag:
            history = batch.history[index : index + 1] if past else None
            degraded = DegradedSamples(torch.tensor([True]), batch.image[index : index + 1], torch.tensor([past]), history)
        alone = sum(loss_terms(*one, degraded).values())
        assert got[index].item() == pytest.approx(alone.item(), rel=1e-6)
    assert terms["low_pass"][2:].tolist() == terms["high_pass"][2:].tolist() == [0, 0]
    assert terms["history"].count_nonzero() == 1 and terms["history"][0] > 0


def test_a_clean_batch_is_the_mean_square() -> None:
    batch = Batch(3, 5)
    terms = loss_terms(batch.prediction, batch.noise, batch.data)
    expected = ((batch.prediction - batch.noise + batch.data).double() ** 2).numpy().mean(axis=(1, 2, 3, 4))
    assert terms.keys() == {"flow"}
    np.testing.assert_allclose(terms["flow"].numpy(), expected, rtol=1e-6)


def test_the_right_velocity_costs_nothing_where_nothing_is_degraded() -> None:
    batch = Batch(1, 5)
    batch.image = batch.history = batch.data[:, :, :1]
    batch.prediction = velocity_target(batch.noise, batch.data)
    assert all(term.item() < 1e-12 for term in batch.terms([True], [True]).values())


def test_weights_are_read() -> None:
    weights = LossWeights(first_frames=(0.0,), low_pass=2.0, high_pass=3.0, history=4.0)
    batch = Batch(1, 2)
    paper, other = batch.terms([True], [True]), batch.terms([True], [True], weights)
    for name, factor in (("low_pass", 2 / 0.2), ("high_pass", 3 / 0.15), ("history", 4 / 0.5)):
        assert other[name].item() == pytest.approx(factor * paper[name].item(), rel=1e-6)
    second = (batch.prediction - batch.noise + batch.data)[:, :, 1:].square().mean() / 2
    assert other["flow"].item() == pytest.approx(second.item(), rel=1e-6)


@pytest.mark.parametrize("silent", [("low_pass",), ("high_pass",), ("history",), ("low_pass", "high_pass", "history")])
def test_a_term_of_weight_0_is_left_out_and_changes_no_bit(silent: tuple[str, ...]) -> None:
    batch = Batch(3, 5)
    samples = DegradedSamples(torch.tensor([True, True, False]), batch.image, torch.tensor([True, False, True]), batch.history)
    results = []
    for weights in (replace(LossWeights(), **dict.fromkeys(silent, 0.0)), LossWeights()):
        prediction = batch.prediction.clone().requires_grad_()
        terms = loss_terms(prediction, batch.noise, batch.data, samples, weights)
        computed = {name: 0.0 * term if name in silent else term for name, term in terms.items()}
        loss = torch.stack(list(batch_terms(computed, torch.tensor([1.0, 0.5, 2.0])).values())).sum()
        loss.backward()
        results.append((loss.detach(), prediction.grad, set(terms)))
    (loss, gradient, names), (whole, whole_gradient, all_names) = results
    assert all_names - names == set(silent) and "flow" in names
    assert torch.equal(loss, whole) and torch.equal(gradient, whole_gradient)


def test_a_batch_is_the_mean_of_its_samples_by_timestep_weight() -> None:
    terms = {"flow": torch.tensor([1.0, 2.0]), "history": torch.tensor([0.0, 4.0])}
    got = batch_terms(terms, torch.tensor([3.0, 0.5]))
    assert {name: value.item() for name, value in got.items()} == {"flow": (3 + 1) / 2, "history": 1.0}


def test_low_precision_is_compared_in_float32() -> None:
    batch = Batch(2, 3)
    low = [x.bfloat16() for x in (batch.prediction, batch.noise, batch.data)]
    exact = sum(loss_terms(*(x.float() for x in low)).values())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sum(loss_terms(*low).values()), exact)
        batch.prediction, batch.image = batch.prediction.bfloat16(), batch.image.bfloat16()
        assert all(term.dtype == torch.float32 for term in batch.terms([True, True], [True, True]).values())


class TestTimesteps:
    SCHEDULE = training_schedule()

    def test_steps_sigmas_and_weights_belong_together(self) -> None:
        u = 1 - np.arange(1000) / 1000
        sigmas = 5 * u / (1 + 4 * u)
        bell = np.exp(-2 * ((1000 * sigmas - 500) / 1000) ** 2)
        weights = (bell - bell.min()) * 1000 / (bell - bell.min()).sum()
        draw = self.SCHEDULE.at(torch.arange(1000))
        np.testing.assert_allclose(draw.sigma.numpy(), sigmas, rtol=0, atol=3e-7)
        np.testing.assert_allclose(draw.timestep.numpy(), 1000 * sigmas, rtol=0, atol=3e-4)
        np.testing.assert_allclose(draw.weight.numpy(), weights, rtol=0, atol=1e-4)
        assert draw.weight[0] == 0, "pure noise weighs nothing"

    def test_every_step_is_alike_likely(self) -> None:
        schedule = training_schedule(steps=8)
        draw = draw_timesteps(schedule, 16_000, torch.Generator().manual_seed(0))
        counts = torch.tensor([(draw.timestep == t).sum() for t in schedule.timesteps])
        assert counts.sum() == 16_000
        assert (counts - 2000).abs().max() < 5 * (2000 * 7 / 8) ** 0.5

    def test_draws_come_from_the_generator_alone(self) -> None:
        state = torch.get_rng_state()
        one, two, other = (draw_timesteps(self.SCHEDULE, 64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(one.timestep, two.timestep) and not torch.equal(one.timestep, other.timestep)
        assert torch.equal(torch.get_rng_state(), state)
