"""The training loop on a task that is small enough to be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvie_core.training.loop.ema import EMA
from longvie_core.training.loop.muon import MatrixMuon
from longvie_core.training.loop.trainer import TrainSettings, generator_for, train

TRUTH = torch.tensor([[2.0, -1.0, 0.5]])


class Line:
    """Learn a linear map from examples."""

    def __init__(self, rate: float = 0.1) -> None:
        self.network = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(self.network.weight)
        self.rate = rate
        self.batches: list[tuple[Tensor, Tensor]] = []

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(self.network.parameters(), lr=self.rate, weight_decay=0)]

    def batch(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        points = torch.randn(16, 3, generator=generator)
        self.batches.append((points, points @ TRUTH.T - 0.01 * torch.randn(16, 1, generator=generator)))
        return self.batches[-1]

    def losses(self, network: nn.Module, batch: tuple[Tensor, Tensor]) -> Mapping[str, Tensor]:
        points, wanted = batch
        return {"error": (network(points) - wanted).square().mean()}

    def sheet(self, network: nn.Module) -> tuple[np.ndarray, Mapping[str, float]]:
        return np.zeros((2, 2, 3), np.uint8), {"weight": float(network.weight[0, 0])}

    def export(self, network: nn.Module, folder: Path) -> None:
        folder.mkdir()
        np.save(folder / "weight.npy", network.weight.detach().numpy())


def settings(**changes: object) -> TrainSettings:
    usual = {"steps": 60, "warmup": 5, "decay": "cosine", "average": 0.9}
    return TrainSettings(**{**usual, "checkpoint_every": 7, "sheet_every": 30, "log_every": 10, **changes})


def run(folder: Path, *stops: int | None, **changes: object) -> Line:
    for stop in (*stops, None):
        task = Line()
        train(task, settings(**changes), folder, stop)
    return task


def test_it_learns_and_exports_the_average(tmp_path: Path) -> None:
    task = run(tmp_path, steps=200)
    exported = np.load(tmp_path / "export" / "weight.npy")
    np.testing.assert_allclose(exported, TRUTH, atol=0.02)
    assert not np.array_equal(exported, task.network.weight.detach().numpy())


@pytest.mark.parametrize("stops", [(10,), (7,), (1, 30)])
def test_cut_off_and_resumed_equals_uninterrupted(tmp_path: Path, stops: tuple[int, ...]) -> None:
    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", *stops)
    assert torch.equal(whole.network.weight, parts.network.weight)
    exported = [np.load(tmp_path / name / "export" / "weight.npy") for name in ("whole", "parts")]
    np.testing.assert_array_equal(*exported)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(Line(), settings(), tmp_path, 20)
    other = Line()
    other.network = nn.Sequential(other.network)
    with pytest.raises(ValueError, match=r"checkpoint_0000020 lacks 1 of the weights that are learnt, 0\.weight for one"):
        train(other, settings(), tmp_path)


def test_a_crash_falls_back_to_the_last_whole_checkpoint(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    train(Line(), settings(), tmp_path / "cut", 20)
    (tmp_path / "cut" / "checkpoint_0000020" / "step.json").unlink()  # as if it had been killed while writing it
    assert torch.equal(run(tmp_path / "cut").network.weight, whole.network.weight)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == ["checkpoint_0000056", "checkpoint_0000060"]


def test_every_step_sees_another_batch_and_accumulates(tmp_path: Path) -> None:
    task = Line()
    train(task, settings(steps=4, accumulation=3), tmp_path)
    assert len({tuple(points.flatten().tolist()) for points, _ in task.batches}) == 12
    other = Line()
    train(other, settings(steps=4, accumulation=3, seed=1), tmp_path / "other")
    assert not torch.equal(task.batches[0][0], other.batches[0][0])


def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    alone, helped = run(tmp_path / "alone", 20), run(tmp_path / "helped", 20, workers=2)
    assert not helped.batches
    assert torch.equal(alone.network.weight, helped.network.weight)


def test_accumulated_gradients_are_means(tmp_path: Path) -> None:
    task = Line()
    task.optimizers = lambda: [torch.optim.SGD(task.network.parameters(), lr=1.0)]
    train(task, settings(steps=1, accumulation=2, warmup=0, decay="constant", clip_norm=1e9), tmp_path)
    expected = torch.zeros(1, 3)
    for part in range(2):
        generator = generator_for(0, 0, part, 0)
        batch = torch.randn(16, 3, generator=generator)
        wanted = batch @ TRUTH.T - 0.01 * torch.randn(16, 1, generator=generator)
        expected += (2 * wanted * batch).mean(dim=0) / 2
    torch.testing.assert_close(task.network.weight.detach(), expected)


def test_the_log_has_losses_rates_and_figures(tmp_path: Path) -> None:
    run(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "error" in line] == [10, 20, 30, 40, 50, 60]
    assert [line["step"] for line in lines if "weight" in line] == [30, 60]
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == ["0000030.png", "0000060.png"]


def test_the_rate_rises_then_falls() -> None:
    rates = [settings().rate(step) for step in range(60)]
    assert rates[0] == pytest.approx(0.2, abs=0.01) and max(rates) == rates[4]
    assert rates[-1] < 0.01
    assert [settings(warmup=0, decay="constant").rate(step) for step in (0, 59)] == [1, 1]


def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path) -> None:
    task = Line()
    task.losses = lambda *_: {"error": task.network.weight.sum() * float("nan")}
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan"):
        train(task, settings(), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"decay": "linear"}, {"steps": 0}, {"accumulation": 0}, {"graphs": True, "accumulation": 2}]
)
def test_settings_are_checked(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(**changes)


def test_the_average_follows_the_weights() -> None:
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(0)
    average = EMA(network, 0.5)
    network.weight.data.fill_(8)
    for _ in range(3):
        average.update(network)
    # Decays 2/11, 3/12 and 4/13 while it is short, never more than 0.5.
    assert average.mean["weight"].item() == pytest.approx(8 * (1 - 2 / 11 * 3 / 12 * 4 / 13))
    average.swap(network)
    assert network.weight.item() != 8
    average.swap(network)
    assert network.weight.item() == 8


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_on_kernels_is_torchs_on_matrices(channels_last: bool) -> None:
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3, 3))
    if channels_last:
        kernel.data = kernel.data.contiguous(memory_format=torch.channels_last_3d)
    matrix = nn.Parameter(kernel.detach().movedim(1, -1).reshape(6, -1).clone())
    ours = MatrixMuon([kernel], lr=0.1)
    theirs = torch.optim.Muon([matrix], lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3, 3)
        kernel.grad, matrix.grad = gradient.clone(), gradient.movedim(1, -1).reshape(6, -1).clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(kernel.detach().movedim(1, -1).reshape(6, -1), matrix.detach(), rtol=1e-2, atol=2e-3)
    ours.zero_grad()
    assert kernel.grad is None


def test_muon_treats_matrices_one_by_one_or_together_alike() -> None:
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (4, 6)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(value.detach().clone()) for value in ours]
    optimizers = [
        MatrixMuon(ours, lr=0.1),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert all(value.grad.count_nonzero() == 0 for value in ours)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-2, atol=4e-3)
