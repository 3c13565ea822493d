"""Unified noise against torch's own generator, and the blend against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longvie_core.model.noise import FIRST_FRAME_SIGMA, NOISE_MODES, UnifiedNoise, blend_first_frame

SHAPE = (1, 16, 3, 6, 10)
LARGE = (1, 16, 5, 44, 80)


def torch_noise(seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(device="cpu").manual_seed(seed))


class TestUnified:
    @pytest.mark.parametrize("seed", [0, 1, 42, 2**63 + 5, 2**64 - 1])
    def test_every_clip_starts_from_torchs_noise_of_the_seed(self, seed: int) -> None:
        noise = UnifiedNoise(seed)
        for clip in (0, 1, 7):
            got = noise.for_clip(clip, SHAPE)
            assert got.dtype == torch.float32 and got.device.type == "cpu"
            assert torch.equal(got, torch_noise(seed))

    def test_every_call_gives_a_tensor_of_its_own(self) -> None:
        noise = UnifiedNoise(3)
        noise.for_clip(0, SHAPE).zero_()
        assert torch.equal(noise.for_clip(1, SHAPE), torch_noise(3))

    def test_offset_moves_one_clip_to_another_seed(self) -> None:
        assert torch.equal(UnifiedNoise(3).for_clip(1, SHAPE, seed_offset=5), torch_noise(8))

    @pytest.mark.parametrize("mode", NOISE_MODES)
    @pytest.mark.parametrize(("seed", "offset"), [(2**64 - 1, 1), (0, -1), (5, 10**30), (0, -(10**30))])
    def test_offsets_beyond_the_seed_range_still_give_noise(self, mode: str, seed: int, offset: int) -> None:
        noise = UnifiedNoise(seed, mode)
        moved = noise.for_clip(0, SHAPE, offset)
        assert torch.equal(moved, noise.for_clip(0, SHAPE, offset))
        assert not torch.equal(moved, noise.for_clip(0, SHAPE))

    def test_the_hosts_interface_gives_the_first_clip(self) -> None:
        noise = UnifiedNoise(11)
        assert noise.seed == 11
        assert torch.equal(noise.generate_noise({"samples": torch.zeros(SHAPE)}), torch_noise(11))


class TestPerClip:
    def test_clips_differ_and_do_not_depend_on_the_order(self) -> None:
        forwards = [UnifiedNoise(0, "per clip").for_clip(clip, SHAPE) for clip in range(4)]
        noise = UnifiedNoise(0, "per clip")
        backwards = [noise.for_clip(clip, SHAPE) for clip in reversed(range(4))][::-1]
        for clip in range(4):
            assert torch.equal(forwards[clip], backwards[clip])
        assert all(not torch.equal(forwards[a], forwards[b]) for a in range(4) for b in range(a))

    def test_clips_of_neighbouring_seeds_share_nothing(self) -> None:
        # seed + clip would make clip 1 of seed 0 the same as clip 0 of seed 1
        pairs = [(seed, clip) for seed in range(6) for clip in range(6)]
        drawn = {UnifiedNoise(seed, "per clip").for_clip(clip, SHAPE).numpy().tobytes() for seed, clip in pairs}
        assert len(drawn) == 36

    def test_clips_are_uncorrelated_standard_normal(self) -> None:
        a, b = (UnifiedNoise(0, "per clip").for_clip(clip, LARGE).flatten().numpy() for clip in (0, 1))
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.01
        assert abs(a.mean()) < 0.01 and abs(a.std() - 1) < 0.01


class TestAlphaMode:
    MODE = "global + alpha * N(0,1)"

    @pytest.mark.parametrize("alpha", [0.05, 0.5])
    def test_what_is_added_to_the_shared_noise_is_alpha_times_a_standard_normal(self, alpha: float) -> None:
        noise = UnifiedNoise(9, self.MODE, alpha)
        added = [(noise.for_clip(clip, LARGE) - torch_noise(9, LARGE)).flatten().double().numpy() for clip in range(2)]
        for own in added:
            assert own.std() == pytest.approx(alpha, rel=0.01)
            assert abs(own.mean()) < 0.01 * alpha
            assert abs(np.corrcoef(own, torch_noise(9, LARGE).flatten())[0, 1]) < 0.01
        assert abs(np.corrcoef(*added)[0, 1]) < 0.01

    def test_the_clips_own_part_is_the_per_clip_noise(self) -> None:
        expected = torch_noise(9) + 0.25 * UnifiedNoise(9, "per clip").for_clip(3, SHAPE)
        assert torch.equal(UnifiedNoise(9, self.MODE, 0.25).for_clip(3, SHAPE), expected)

    def test_alpha_zero_is_the_shared_noise(self) -> None:
        assert torch.equal(UnifiedNoise(9, self.MODE, 0).for_clip(3, SHAPE), torch_noise(9))


@pytest.mark.parametrize("mode", NOISE_MODES)
def test_global_random_state_is_neither_read_nor_changed(mode: str) -> None:
    noise = UnifiedNoise(5, mode)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = noise.for_clip(2, SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise.for_clip(2, SHAPE), first)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'shared' is not one of: unified, per clip, global"):
        UnifiedNoise(0, "shared")
    with pytest.raises(ValueError, match="alpha -0.1 is negative"):
        UnifiedNoise(0, alpha=-0.1)


class TestBlend:
    def test_constant_is_the_references(self) -> None:
        assert pytest.approx(0.925926, abs=5e-7) == FIRST_FRAME_SIGMA

    @pytest.mark.parametrize("sigma", [0.0, 25 / 27, 0.5, 1.0])
    def test_formula(self, sigma: float) -> None:
        noise, history = torch_noise(0), torch_noise(1, (1, 16, 2, 6, 10))
        got = blend_first_frame(noise, history, sigma).double().numpy()
        expected = noise.double().numpy().copy()
        expected[:, :, 0] = (1 - sigma) * history.double().numpy()[:, :, -1] + sigma * expected[:, :, 0]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(got[:, :, 1:], expected[:, :, 1:])

    def test_default_is_the_references_constant(self) -> None:
        noise, history = torch_noise(0), torch_noise(1)
        assert torch.equal(blend_first_frame(noise, history), blend_first_frame(noise, history, 25 / 27))

    def test_neither_input_is_touched(self) -> None:
        noise, history = torch_noise(0), torch_noise(1)
        result = blend_first_frame(noise, history)
        assert torch.equal(noise, torch_noise(0)) and torch.equal(history, torch_noise(1))
        result.zero_()
        assert torch.equal(noise, torch_noise(0)) and torch.equal(history, torch_noise(1))

    def test_result_has_the_noises_type(self) -> None:
        result = blend_first_frame(torch_noise(0), torch_noise(1).double())
        assert result.dtype == torch.float32 and result.shape == SHAPE
