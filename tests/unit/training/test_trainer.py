"""The training loop on a task that is small enough to be worked out by hand."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from longvie_core.training.draws import generator_for
from longvie_core.training.loop.ema import EMA
from longvie_core.training.loop.log import Progress
from longvie_core.training.loop.muon import Muon
from longvie_core.training.loop.settings import TrainSettings
from longvie_core.training.loop.trainer import train

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
    usual = {"steps": 60, "warmup": 5, "decay": "cosine", "ema": 0.9}
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
    train(task, settings(steps=4, grad_accum_steps=3), tmp_path)
    assert len({tuple(points.flatten().tolist()) for points, _ in task.batches}) == 12
    other = Line()
    train(other, settings(steps=4, grad_accum_steps=3, seed=1), tmp_path / "other")
    assert not torch.equal(task.batches[0][0], other.batches[0][0])


def test_batches_made_ahead_are_the_same(tmp_path: Path) -> None:
    alone, helped = run(tmp_path / "alone", 20), run(tmp_path / "helped", 20, workers=2)
    assert not helped.batches
    assert torch.equal(alone.network.weight, helped.network.weight)


def test_accumulated_gradients_are_means(tmp_path: Path) -> None:
    task = Line()
    task.optimizers = lambda: [torch.optim.SGD(task.network.parameters(), lr=1.0)]
    train(task, settings(steps=1, grad_accum_steps=2, warmup=0, decay="constant", max_grad_norm=1e9), tmp_path)
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
    rates = [settings().lr_factor(step) for step in range(60)]
    assert rates[0] == pytest.approx(0.2, abs=0.01) and max(rates) == rates[4]
    assert rates[-1] < 0.01
    assert [settings(warmup=0, decay="constant").lr_factor(step) for step in (0, 59)] == [1, 1]


def test_a_line_tells_how_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Line(), settings(grad_accum_steps=2), tmp_path, 20)
    train(Line(), settings(grad_accum_steps=2), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    log = [line for line in log if "error" in line]
    assert [line["step"] for line in log] == [10, 20, 30, 40, 50, 60]
    for number, (line, logged) in enumerate(zip(lines, log, strict=True)):
        step, loss, rate, pace, left = re.fullmatch(
            r"step (\d+)/60  loss (\S+)  lr adamw (\S+)  (\S+) clips/s  (\d+:\d\d:\d\d) left", line
        ).groups()
        assert int(step) == logged["step"]
        assert float(loss) == pytest.approx(logged["error"], rel=1e-3)
        assert float(rate) == pytest.approx(logged["lr adamw"], rel=0.05)
        assert logged["lr adamw"] == pytest.approx(0.1 * settings().lr_factor(logged["step"] - 1))
        assert float(pace) > 0
        assert left == "0:00:00" or number not in (1, 5)  # nothing is left where a call ends


def test_the_pace_is_that_since_the_last_line_and_the_time_left_goes_by_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("longvie_core.training.loop.log.time.monotonic", lambda: now)
    progress = Progress(first=10, last=110, total=200)
    for seconds, expected in ((20.0, "32.0 clips/s  0:03:00 left"), (60.0, "10.7 clips/s  0:05:20 left")):
        for _ in range(10):
            progress.count(64)
        now += seconds
        step = 20 if seconds == 20.0 else 30
        line = progress.line(step, 0.51234, {"lr adamw": 2.5e-4, "lr muon": 0.002})
        assert line == f"step {step}/200  loss 0.5123  lr adamw 2.5e-04  lr muon 2.0e-03  {expected}"


@pytest.mark.parametrize(("step", "mend"), [(1, "weights that it starts from"), (4, "lower the learning rate")])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_no_number_stops_the_training(tmp_path: Path, step: int, mend: str, value: str) -> None:
    task = Line()
    steps = iter(range(1, 10))
    task.losses = lambda *_: {
        "error": task.network.weight.sum(),
        "other": task.network.weight.sum() * 0 + float(value if next(steps) == step else 0),
    }
    with pytest.raises(FloatingPointError, match=rf"step {step}: the loss is {value} \(in other\): .*{mend}"):
        train(task, settings(), tmp_path)


@pytest.mark.parametrize(
    "changes", [{"decay": "linear"}, {"steps": 0}, {"grad_accum_steps": 0}, {"graphs": True, "grad_accum_steps": 2}]
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
    ours = Muon([kernel], lr=0.1)
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
        Muon(ours, lr=0.1),
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


class FirstMuon:
    """The update as it was written out at first: the momentum kept here, shapes together, one learning rate."""

    COEFFICIENTS = (3.4445, -4.775, 2.0315)

    def __init__(self, matrices: list[Tensor]) -> None:
        self.matrices, self.means = matrices, [torch.zeros_like(matrix) for matrix in matrices]

    def step(self, gradients: list[Tensor | None], lr: float) -> None:
        alike = defaultdict(list)
        for matrix, mean, gradient in zip(self.matrices, self.means, gradients, strict=True):
            if gradient is not None:
                mean.lerp_(gradient, 1 - 0.95)
                alike[matrix.shape].append((matrix, gradient.lerp(mean, 0.95)))
        for (rows, columns), pairs in alike.items():
            x = torch.stack([ahead for _, ahead in pairs])
            x = (x.mT if rows > columns else x).bfloat16()
            x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):
                a, b, c = self.COEFFICIENTS
                gram = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
            for (matrix, _), update in zip(pairs, (x.mT if rows > columns else x).float(), strict=True):
                matrix.add_(update, alpha=-0.2 * sqrt(max(rows, columns)) * lr)


def muon_parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = [(6, 4), (4, 6), (6, 4), (5, 5), (6, 4, 3), (6, 12), (6, 2, 2, 3)]
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def set_gradients(parameters: list[nn.Parameter], step: int) -> None:
    """Random ones, and none for the fourth parameter in the second step."""
    generator = torch.Generator().manual_seed(step)
    for place, value in enumerate(parameters):
        value.grad = torch.randn(value.shape, generator=generator)
        if (place, step) == (3, 1):
            value.grad = None


@torch.no_grad()
def test_muon_gives_the_bits_of_its_first_version() -> None:
    ours, theirs = muon_parameters(), [value.detach().clone().flatten(1) for value in muon_parameters()]
    muon, first = Muon(ours, lr=0.1), FirstMuon(theirs)
    schedule = torch.optim.lr_scheduler.LambdaLR(muon, lambda step: 1 / (1 + step))
    for step in range(4):
        set_gradients(ours, step)
        first.step([None if value.grad is None else value.grad.flatten(1) for value in ours], 0.1 / (1 + step))
        muon.step()
        schedule.step()
        assert all(torch.equal(mine.flatten(1), other) for mine, other in zip(ours, theirs, strict=True))


def test_muon_is_an_ordinary_optimizer() -> None:
    parameters = muon_parameters()
    muon = Muon([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 0.0, "momentum": 0.5}], lr=0.1)
    assert [group["lr"] for group in muon.param_groups] == [0.1, 0.0]
    before = [value.detach().clone() for value in parameters]

    def closure() -> float:
        set_gradients(parameters, 0)
        assert torch.is_grad_enabled()
        return 7.0

    assert muon.step(closure) == 7.0
    moved = [not torch.equal(value, old) for value, old in zip(parameters, before, strict=True)]
    assert moved == [True] * 3 + [False] * 4
    with pytest.raises(ValueError, match=r"a parameter of shape \[3\] is no matrix: leave it to AdamW"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


@pytest.mark.parametrize("channels_last", [False, True])
def test_muon_goes_on_from_its_state(channels_last: bool) -> None:
    def start() -> tuple[list[nn.Parameter], Muon]:
        parameters = muon_parameters()
        if channels_last:
            parameters[-1].data = parameters[-1].data.contiguous(memory_format=torch.channels_last)
        return parameters, Muon(parameters, lr=0.1)

    whole, optimizer = start()
    parts, first = start()
    for step in range(4):
        if step == 2:
            state = deepcopy(first.state_dict())
            first = Muon(parts, lr=0.5)
            first.load_state_dict(state)
        for parameters, own in ((whole, optimizer), (parts, first)):
            set_gradients(parameters, step)
            own.step()
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))
