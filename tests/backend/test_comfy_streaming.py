"""Control latents from disk against those that the host's VAE has just made."""

from pathlib import Path

import comfy.sd
import numpy as np
import pytest
import torch

from longvie_core.backends import comfy as backend
from longvie_core.disk.cache import ControlCache
from longvie_core.model.clip import ClipInputs
from longvie_core.plan import ClipPlan
from longvie_core.run.control_latents import LatentStore, control_latents
from longvie_core.run.loop import Carry
from tests.helpers.harness import Rig
from tests.helpers.loops import generated

PLAN = ClipPlan(width=32, height=16, frames=9, source_frames=9 + 8)


class Pictures:
    """A control of seeded noise, which says how often it was read."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.read = 0

    def window(self, plan: ClipPlan, clip: int) -> list[np.ndarray]:
        self.read += 1
        generator = np.random.default_rng([self.seed, clip])
        return list(generator.integers(0, 256, (plan.frames, plan.height, plan.width, 3), dtype=np.uint8))

    def digest(self, plan: ClipPlan, clip: int) -> str:
        return f"{self.seed} {clip}"


class SampledFrom(backend.VaeCodec):
    """The VAE with a sampler that gives its noise back, and remembers what it was conditioned on."""

    def __init__(self, vae: comfy.sd.VAE, rig: Rig) -> None:
        super().__init__(vae, rig.model)
        self.inputs: list[ClipInputs] = []

    def sample(self, inputs: ClipInputs) -> torch.Tensor:
        self.inputs.append(inputs)
        return inputs.noise


def conditioned(vae: comfy.sd.VAE, rig: Rig, dense: Pictures, store: LatentStore | None) -> list[ClipInputs]:
    codec = SampledFrom(vae, rig)
    carry = Carry(np.full((1, PLAN.height, PLAN.width, 3), 128, np.uint8), first=True)
    noise = torch.randn(1, 16, PLAN.latent_frames, *PLAN.latent_size, generator=torch.Generator().manual_seed(0))
    list(generated(PLAN, range(2), carry, dense, Pictures(9), lambda *_: noise, codec, store=store))
    return codec.inputs


@pytest.fixture(scope="module")
def encoded(vae: comfy.sd.VAE, tiny: Rig) -> list[ClipInputs]:
    """What two clips are sampled from where nothing is kept."""
    with torch.inference_mode():
        return conditioned(vae, tiny, Pictures(3), None)


def test_kept_latents_have_the_bits_of_encoded_ones(
    vae: comfy.sd.VAE, tiny: Rig, encoded: list[ClipInputs], tmp_path: Path
) -> None:
    cache = ControlCache(tmp_path, 1 << 30)
    for counts in ((4, 0), (0, 4)):
        dense = Pictures(3)
        with LatentStore(cache, "tiny") as store:
            inputs = conditioned(vae, tiny, dense, store)
            assert (store.misses, store.hits) == counts and dense.read == (2 if counts[0] else 0)
        for ours, theirs in zip(inputs, encoded, strict=True):
            assert torch.equal(ours.dense, theirs.dense) and torch.equal(ours.sparse, theirs.sparse)
            assert ours.dense.dtype == theirs.dense.dtype and not torch.equal(ours.dense, ours.sparse)


def test_a_run_conditions_its_clips_as_the_node_for_single_clips_does(
    vae: comfy.sd.VAE, tiny: Rig, encoded: list[ClipInputs]
) -> None:
    codec = backend.VaeCodec(vae, tiny.model)
    for clip, inputs in enumerate(encoded):
        assert torch.equal(control_latents(Pictures(3), PLAN, clip, codec), inputs.dense)
