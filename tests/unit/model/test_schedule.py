"""The schedule against values that the reference gives and against hand arithmetic in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longvie_core.model.schedule import add_noise, euler_step, flow_sigmas, nearest_step, timesteps, training_weights


def test_four_steps_of_the_reference() -> None:
    np.testing.assert_allclose(flow_sigmas(4).numpy(), [1, 0.9375, 0.8333333, 0.625, 0], atol=1e-6)


def test_fifty_steps_of_the_reference() -> None:
    sigmas = flow_sigmas()
    steps = timesteps(sigmas).numpy()
    assert sigmas.shape == (51,) and sigmas.dtype == torch.float32 and steps.shape == (50,)
    np.testing.assert_allclose(steps[[0, 1, 2, -1]], [1000, 995.93, 991.74, 92.59], atol=5e-3)
    assert sigmas[0] == 1 and sigmas[-1] == 0


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0])
def test_formula_in_float64(steps: int, shift: float) -> None:
    u = np.arange(steps, -1, -1) / steps
    expected = 1 / (1 + (1 / u[:-1] - 1) / shift)  # the same curve, written as 1 / (1 + (1/u - 1)/s)
    got = flow_sigmas(steps, shift).numpy()
    np.testing.assert_allclose(got[:-1], expected, rtol=0, atol=3e-7)
    assert got[-1] == 0 and (np.diff(got) < 0).all()


@pytest.mark.parametrize(
    ("steps", "shift", "message"), [(0, 5.0, "steps is 0"), (4, 0.0, "shift is 0"), (4, -1.0, "shift is -1")]
)
def test_out_of_range(steps: int, shift: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_sigmas(steps, shift)


def test_one_exact_euler_step_per_interval_recovers_the_data() -> None:
    """With the true velocity (noise - data), every Euler step lands on the forward process again."""
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = flow_sigmas(7).double()
    x = noise
    for sigma, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        torch.testing.assert_close(x, add_noise(data, noise, sigma), rtol=0, atol=1e-12)
        x = euler_step(x, noise - data, sigma, after)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-12)


def test_forward_process_by_hand() -> None:
    got = add_noise(torch.tensor([8.0]), torch.tensor([-4.0]), torch.tensor(0.25))
    assert got.item() == 0.75 * 8 + 0.25 * -4


class TestTrainingWeights:
    STEPS = timesteps(flow_sigmas(1000))

    def test_the_references_figures(self) -> None:
        weights = training_weights(self.STEPS)
        assert weights.sum().item() == pytest.approx(1000, rel=1e-5)
        assert weights.max().item() == pytest.approx(2.076, abs=5e-4)
        assert self.STEPS[weights.argmax()].item() == pytest.approx(500.6, abs=0.05)
        assert weights[0].item() == 0 and self.STEPS[0].item() == 1000

    def test_formula_in_float64(self) -> None:
        t = self.STEPS.double().numpy()
        bell = np.exp(-2 * ((t - 500) / 1000) ** 2)
        bell -= bell.min()
        np.testing.assert_allclose(training_weights(self.STEPS).numpy(), bell * 1000 / bell.sum(), rtol=0, atol=1e-4)


def test_nearest_step_by_brute_force() -> None:
    steps = timesteps(flow_sigmas(50))
    asked = torch.tensor([1000.0, 999.0, 93.0, 0.0, 927.0, 500.0])
    expected = [min(range(50), key=lambda i: abs(steps[i].item() - t)) for t in asked.tolist()]
    assert nearest_step(steps, asked).tolist() == expected
    assert nearest_step(steps, steps).tolist() == list(range(50))
