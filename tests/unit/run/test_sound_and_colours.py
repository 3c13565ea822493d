"""What a run keeps besides clips: the first one's colours, for anchoring, and the sound under its video."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longvie_core.media.probe import probe
from longvie_core.media.sound import write_wave
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.keys import ClipKey
from longvie_core.run.loop import Carry
from longvie_core.run.store import Run
from tests.helpers.loops import finished_clip, save_clip

PLAN = ClipPlan(width=32, height=32, frames=9, source_frames=25)
RATE = 8000


def pictures(clip: int) -> np.ndarray:
    return np.random.default_rng(clip).integers(0, 256, (PLAN.frames, 32, 32, 3), dtype=np.uint8)


def latents(clip: int) -> torch.Tensor:
    return torch.randn((1, 16, 3, 4, 4), generator=torch.Generator().manual_seed(clip)) + clip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    with Run(folder).locked() as run:
        for clip in range(3):
            result = finished_clip(PLAN, clip, latents(clip), pictures(clip))
            save_clip(run, PLAN, ClipKey({"clip": str(clip)}), result, 1.0, run.manifest.clips)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def carry(folder: Path, clip: int, anchor: AnchorSettings | None) -> Carry:
    """What a clip, counted from 0, needs of those before it."""
    run = Run(folder)
    return run.carry(run.manifest.clips[clip - 1], PLAN, run.manifest.clips[0], anchor)


def first_latents(folder: Path) -> Path:
    run = Run(folder)
    return run.path(run.manifest.clips[0].latents)


def join(run: Run, clips: int, *rest: object) -> Path:
    """Join the first clips."""
    return run.assemble(run.manifest.clips[:clips], PLAN.fps, *rest)


def sound(path: Path, seconds: float, pitch: float = 0.3) -> Path:
    samples = (np.sin(np.arange(int(seconds * RATE)) * pitch) * 9000).astype(np.int16)
    write_wave(path, RATE, 1, [samples[:, None]])
    return path


def sound_of(video: Path) -> float:
    """Seconds of sound in a video; 0 where there is none."""
    with av.open(str(video)) as container:
        if not container.streams.audio:
            return 0.0
        stream = container.streams.audio[0]
        return float(stream.duration * stream.time_base)


class TestColours:
    def test_pixel_statistics_are_those_of_the_first_clips_frames(self, folder: Path) -> None:
        frames = (pictures(0).astype(np.float64) + 0.5) / 127.5 - 1
        expected = [frames.mean(axis=(0, 1, 2)), frames.std(axis=(0, 1, 2))]
        for clip in (1, 2):
            reference = carry(folder, clip, AnchorSettings("pixels", 0.5)).anchor_statistics
            np.testing.assert_allclose(reference, expected, rtol=0, atol=1e-12)

    def test_latent_statistics_are_those_of_the_first_clips_latents(self, folder: Path) -> None:
        values = latents(0).double().numpy()[0].reshape(16, -1)
        reference = carry(folder, 2, AnchorSettings("latent", 0.5)).anchor_statistics
        np.testing.assert_allclose(reference, [values.mean(axis=1), values.std(axis=1)], rtol=0, atol=1e-12)

    @pytest.mark.parametrize("space", ["pixels", "latent"])
    def test_they_are_bit_by_bit_what_the_loop_measured(self, folder: Path, space: str) -> None:
        anchor = AnchorSettings(space, 1.0)
        measured = anchor.statistics(latents(0), pictures(0))
        np.testing.assert_array_equal(carry(folder, 1, anchor).anchor_statistics, measured)

    @pytest.mark.parametrize("anchor", [None, AnchorSettings(), AnchorSettings("pixels", 0.0)])
    def test_nothing_is_read_where_nothing_is_anchored(self, folder: Path, anchor: AnchorSettings | None) -> None:
        first_latents(folder).unlink()
        assert carry(folder, 2, anchor).anchor_statistics is None

    def test_a_first_clip_without_its_colours_is_named(self, folder: Path) -> None:
        path = first_latents(folder)
        tensors = load_file(path)
        save_file({name: value for name, value in tensors.items() if name != "colours"}, path)
        with pytest.raises(ValueError, match=rf"{path.name} .*render clip 1 again, or set anchor to off"):
            carry(folder, 2, AnchorSettings("pixels", 0.5))
        path.unlink()
        with pytest.raises(ValueError, match=rf"{path.name} .*render clip 1 again"):
            carry(folder, 2, AnchorSettings("latent", 0.5))


class TestSound:
    def test_is_cut_to_the_video_or_left_short(self, folder: Path, tmp_path: Path) -> None:
        with Run(folder).locked() as run:
            video = join(run, 3, None, sound(tmp_path / "long.wav", 9))
            assert probe(video).frames == 25 and abs(sound_of(video) - 25 / 16) < 0.01
            video = join(run, 3, None, sound(tmp_path / "short.wav", 0.5))
            assert probe(video).frames == 25 and 0.45 < sound_of(video) < 0.65
            assert sound_of(join(run, 3)) == 0

    def test_the_video_is_made_again_only_for_other_sound(self, folder: Path, tmp_path: Path) -> None:
        def made(audio: Path | None) -> bool:
            """Whether it was; no other video may be touched."""
            before = {path: path.read_bytes() for path in folder.glob("run_*.mp4")}
            with Run(folder).locked() as run:
                video = join(run, 3, {"prompt": "{}"}, audio)
            assert {path: path.read_bytes() for path in before} == before
            return video not in before

        one = sound(tmp_path / "one.wav", 2)
        assert made(one) and not made(one)
        assert not made(sound(tmp_path / "same.wav", 2)), "another file of the same content"
        assert made(sound(tmp_path / "one.wav", 2, pitch=0.5)), "the same file with other content"
        assert made(None) and not made(None)
        assert not made(sound(tmp_path / "one.wav", 2)), "the first video is still there"

    def test_a_video_file_gives_its_sound_and_not_its_pictures(self, folder: Path, tmp_path: Path) -> None:
        with Run(folder).locked() as run:
            source = Path(shutil.copyfile(join(run, 3, None, sound(tmp_path / "a.wav", 3)), tmp_path / "source.mp4"))
            video = join(run, 2, None, source)
        assert probe(video).frames == 17 and abs(sound_of(video) - 17 / 16) < 0.01
        with av.open(str(video)) as ours, av.open(str(source)) as theirs:
            copied = [[bytes(packet) for packet in file.demux(audio=0) if packet.size] for file in (ours, theirs)]
        assert copied[0] and copied[0] == copied[1][: len(copied[0])], "the sound was encoded again"

    def test_sound_that_cannot_be_read_leaves_the_video_that_was(self, folder: Path, tmp_path: Path) -> None:
        with Run(folder).locked() as run:
            video = join(run, 3)
            before = video.read_bytes()
            (tmp_path / "bad.wav").write_bytes(b"RIFF" + bytes(100))
            with pytest.raises(ValueError, match="bad.wav"):
                join(run, 3, None, tmp_path / "bad.wav")
            assert video.read_bytes() == before and not list(folder.glob("*.part"))
            assert list(folder.glob("run_*.mp4")) == [video]
