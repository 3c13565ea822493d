"""What CUDA graphs need of the losses, as far as it shows without a GPU: nothing comes from the host, nothing goes there."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longvie_core.training.loop.graphs import GraphedLosses
from longvie_core.training.networks.controlled_backbone import require_gradients, tiny_network
from longvie_core.training.networks.whole_clip_vae import WholeClipVae, tiny_vae
from longvie_core.training.stages import TINY_ROBUST
from longvie_core.training.tasks.batches import Batch, ConditionLatents
from longvie_core.training.tasks.control import ControlTask
from longvie_core.training.tasks.vae import Crops, VaeTask
from longvie_core.training.tiny import TINY_BACKBONE, TINY_CONTROL
from longvie_core.training.vae import TINY_STAGES


class HostTensors(TorchDispatchMode):
    """Collects the operations that read or make tensors beside the device's (here: those that hold no values)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> object:
        out = func(*args, **(kwargs or {}))
        self.seen += 1
        tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, Tensor)]
        if any(value.device.type != "meta" for value in tensors) or func is torch.ops.aten._local_scalar_dense.default:
            self.found.add(str(func))
        return out


def host_tensors(losses: callable, network: torch.nn.Module, batch: object) -> set[str]:
    batch = send_to_device(batch, "meta")
    with HostTensors() as mode:
        terms: Mapping[str, Tensor] = losses(network, batch)
        sum(terms.values()).backward()
    assert mode.seen > 500
    return mode.found


def clips(count: int, history: int) -> Batch:
    def latents(frames: int = 5) -> Tensor:
        return torch.zeros(count, 16, frames, 8, 12, dtype=torch.float16)

    shown = ConditionLatents(
        *(latents() for _ in range(5)),
        torch.ones(count),
        torch.ones(count),
        latents(history) if history else None,
        torch.zeros(count, 1, 4096),
        None,
    )
    each = torch.ones(count)
    return Batch(shown, latents(), latents().float(), 500 * each, each / 2, each, each > 0)


@pytest.mark.parametrize("history", [0, 2, 3])
def test_control_losses_stay_on_the_device(history: int) -> None:
    network = tiny_network(TINY_BACKBONE, TINY_CONTROL).to("meta")
    network.bypass_text_attention()
    task = object.__new__(ControlTask)
    task.network, task.stage = network, TINY_ROBUST
    assert not host_tensors(task.losses, network, clips(2, history))


@pytest.mark.parametrize(("frames", "weight", "trips"), [(1, 0.0, 0), (17, 0.1, 0), (1, 1.0, 2)])
def test_vae_losses_stay_on_the_device(frames: int, weight: float, trips: int) -> None:
    network = WholeClipVae(tiny_vae()).to("meta")
    task = object.__new__(VaeTask)
    task.settings = TINY_STAGES["pictures"][0]
    pictures = torch.zeros(2, frames, 64, 96, 3, dtype=torch.uint8)
    noise = torch.zeros(2, 16, 1 + (frames - 1) // 4, 8, 12)
    assert not host_tensors(task.losses, network, Crops(pictures, noise, weight, trips))


def test_a_copy_from_the_host_would_be_seen() -> None:
    with HostTensors() as mode:
        torch.ones(2).to("meta")
    assert mode.found


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_recorded_step_gives_the_same_losses_and_gradients() -> None:
    torch.manual_seed(0)
    network = tiny_network(TINY_BACKBONE, TINY_CONTROL).to("cuda")
    network.bypass_text_attention()
    require_gradients(network, TINY_ROBUST.trainable)
    task = object.__new__(ControlTask)
    task.network, task.stage = network, TINY_ROBUST
    learnt = [value for value in network.parameters() if value.requires_grad]

    def compute(batch: Batch) -> dict[str, Tensor]:
        terms = task.losses(network, batch)
        sum(terms.values()).backward()
        return {name: value.detach() for name, value in terms.items()}

    recorded = GraphedLosses(compute, learnt)
    for history in (2, 0, 2):
        batch = send_to_device(clips(2, history)._replace(noise=torch.randn(2, 16, 5, 8, 12)), "cuda")
        terms, gradients = {name: float(value) for name, value in recorded(batch).items()}, [v.grad.clone() for v in learnt]
        for value in learnt:
            value.grad.zero_()
        plain = compute(batch)
        assert terms == pytest.approx({name: float(value) for name, value in plain.items()}, rel=1e-4)
        for value, gradient in zip(learnt, gradients, strict=True):
            torch.testing.assert_close(value.grad, gradient, rtol=1e-2, atol=1e-4)
            value.grad.zero_()
