"""The VAE as it is trained: whole clips at once, the same network as diffusers runs in chunks."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from longvie_core.training.data.scenes import SceneSet, SceneSettings, film, open_set
from longvie_core.training.loop.settings import TrainSettings
from longvie_core.training.loop.trainer import train
from longvie_core.training.networks.whole_clip_vae import WholeClipVae, fold_statistics, tiny_vae
from longvie_core.training.scenes import main
from longvie_core.training.tasks.pictures import psnr
from longvie_core.training.tasks.vae import Phase, VaeSettings, VaeTask, picture_loss
from longvie_core.training.vae import TINY_STAGES
from longvie_core.training.vae import main as train_vae

SETTINGS = SceneSettings(width=32, height=32, clips=2, frames=5, grid=4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    found = open_set(tmp_path_factory.mktemp("scenes"), SETTINGS, 3)
    assert list(found.render(range(3))) == [0, 1, 2]
    return found


@pytest.fixture(scope="module")
def shaken() -> AutoencoderKLWan:
    """A network in which every weight matters."""
    torch.manual_seed(0)
    vae = tiny_vae(4)
    with torch.no_grad():
        for value in vae.parameters():
            value.add_(0.03 * torch.randn_like(value))
    return vae


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.rand(1, 3, 17, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


# ---- the network


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 5, 17])
def test_whole_clips_equal_chunks(shaken: AutoencoderKLWan, clip: torch.Tensor, frames: int) -> None:
    whole = WholeClipVae(deepcopy(shaken))
    latents = shaken.encode(clip[:, :, :frames]).latent_dist.mean
    torch.testing.assert_close(whole.encode(clip[:, :, :frames]), latents, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.decode(latents).clamp(-1, 1), shaken.decode(latents).sample, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_it_starts_with_frames_alike() -> None:
    torch.manual_seed(0)
    whole = WholeClipVae(tiny_vae(4))
    still = torch.rand(1, 3, 1, 32, 32).mul(2).sub(1).expand(-1, -1, 17, -1, -1)
    latents = whole.encode(still)
    assert latents.std() > 0.1
    torch.testing.assert_close(latents, latents[:, :, :1].expand_as(latents), atol=1e-5, rtol=1e-4)
    seen = whole.decode(latents)
    torch.testing.assert_close(seen, seen[:, :, :1].expand_as(seen), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_statistics_are_folded_without_changing_pictures(shaken: AutoencoderKLWan, clip: torch.Tensor) -> None:
    before = shaken.encode(clip).latent_dist.mean
    folded = deepcopy(shaken)
    fold_statistics(folded, before.mean((0, 2, 3, 4)), before.std((0, 2, 3, 4)))
    after = folded.encode(clip).latent_dist.mean
    torch.testing.assert_close(after.mean((0, 2, 3, 4)), torch.tensor(folded.config.latents_mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3, 4)), torch.tensor(folded.config.latents_std), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded.decode(after).sample, shaken.decode(before).sample, atol=1e-4, rtol=0)


def test_the_loss_sees_colour_where_grey_is_right() -> None:
    coloured = torch.zeros(1, 3, 1, 8, 8)
    coloured[:, 0] += 0.3
    coloured[:, 2] -= 0.3
    grey = torch.full((1, 3, 1, 8, 8), 0.2)
    nothing = torch.zeros(1, 3, 1, 8, 8)
    assert picture_loss(nothing, nothing) == 0
    # Of the same mean error, the one in colour costs more.
    assert picture_loss(coloured, nothing) > 2 * picture_loss(grey, nothing)


def test_psnr_is_that_of_its_definition() -> None:
    assert psnr(torch.full((2, 3), 0.1), torch.zeros(2, 3)) == pytest.approx(20 * np.log10(2 / 0.1))


# ---- the videos


def test_a_video_has_exact_controls(scenes: SceneSet) -> None:
    arrays = film(SETTINGS, 1)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(scenes, name)[1], array)
    assert arrays["rgb"].shape == (9, 32, 32, 3) and arrays["sparse"].shape == (2, 5, 32, 32, 3)
    assert (arrays["dense"].min(), arrays["dense"].max()) == (0, 255)
    assert arrays["sparse"].any(axis=(1, 2, 3, 4)).all()
    assert (scenes.rgb[0] != scenes.rgb[1]).any()


def test_rendering_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = open_set(tmp_path, SETTINGS, 2)
    assert list(half.render(range(1))) == [0]
    assert half.finished.tolist() == [0]
    assert list(open_set(tmp_path, SETTINGS, 2).render(range(2))) == [1]
    with pytest.raises(ValueError, match="holds 2 videos"):
        open_set(tmp_path, SETTINGS, 3)
    monkeypatch.setattr("sys.argv", ["scenes", str(tmp_path), "--videos", "2"])
    with pytest.raises(ValueError, match="holds 2 videos"):
        main()
    with pytest.raises(FileNotFoundError, match="render scenes there first"):
        SceneSet(tmp_path / "nowhere")


# ---- training


def task(scenes: SceneSet) -> VaeTask:
    torch.manual_seed(0)
    phases = (Phase(20, 1, 32, 32, 4, 0.0), Phase(99, 5, 16, 16, 2, 0.2))
    return VaeTask(VaeSettings(phases, videos=3), scenes, scenes, tiny_vae(4))


def test_training_learns_and_exports_what_diffusers_opens(scenes: SceneSet, tmp_path: Path) -> None:
    learner = task(scenes)
    before = learner.sheet(learner.network)[1]["psnr rgb"]
    train(learner, TrainSettings(steps=40, ema=0.5, sheet_every=40, checkpoint_every=40), tmp_path)
    after = learner.sheet(learner.network)[1]["psnr rgb"]
    assert after > before + 2
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "export")
    assert vae.config.base_dim == 4


def test_the_round_trip_term_is_of_the_last_of_several_trips(scenes: SceneSet, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = (Phase(9, 1, 32, 32, 1, 1.0, 4),)
    learner = VaeTask(VaeSettings(phases, videos=3), scenes, scenes, tiny_vae(4))
    trips = []
    encode = WholeClipVae.encode
    monkeypatch.setattr(WholeClipVae, "encode", lambda net, pixels: trips.append(pixels.requires_grad) or encode(net, pixels))
    seen = set()
    for seed in range(30):
        trips.clear()
        terms = learner.losses(learner.network, learner.batch(0, torch.Generator().manual_seed(seed)))
        assert terms["round_trip"] > 0
        # One to begin with and one at the end; gradients reach the first only where nothing lies between.
        seen.add(len(trips) - 2)
        assert trips[-1] is (len(trips) == 2)
    assert seen == {0, 1, 2, 3}


def test_a_stage_starts_from_a_result(scenes: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = task(scenes)
    learner.export(learner.network, tmp_path / "first")
    short = (VaeSettings((Phase(9, 1, 32, 32, 1, 0.0),), videos=3), TrainSettings(steps=1))
    monkeypatch.setitem(TINY_STAGES, "round-trips", short)
    folder = scenes.rgb.filename
    where = str(Path(folder).parent)
    train_vae(["round-trips", where, where, str(tmp_path / "second"), "--start", str(tmp_path / "first")])
    first, second = (AutoencoderKLWan.from_pretrained(path) for path in (tmp_path / "first", tmp_path / "second" / "export"))
    change = (first.decoder.conv_in.weight - second.decoder.conv_in.weight).abs()
    assert 0 < change.max() < 0.1 * first.decoder.conv_in.weight.abs().max()


def test_it_does_not_start_before_its_videos_are_rendered(scenes: SceneSet) -> None:
    with pytest.raises(ValueError, match="2 of the first 5 training videos are not rendered"):
        VaeTask(VaeSettings((), videos=5), scenes, scenes, tiny_vae(4))
