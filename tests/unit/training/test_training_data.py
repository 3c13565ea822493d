"""Training clips: the right frames with the right past, and their latents, encoded once."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from longvie_core.control.depth.parallax import ParallaxDepth
from longvie_core.control.tracks.lucas_kanade import LucasKanade
from longvie_core.media.write import VideoWriter
from longvie_core.model.conditioning import first_frame_then_grey, frames_to_uint8, pixels_from_uint8
from longvie_core.training.data.codec import TrainingCodec, device_pixels, device_uint8
from longvie_core.training.data.encode import start_pictures
from longvie_core.training.data.latents import ClipLatents
from longvie_core.training.data.scene_clips import SceneClips
from longvie_core.training.data.scenes import SceneSet, SceneSettings, open_set
from longvie_core.training.data.source import PAST_FRAMES, Clip
from longvie_core.training.data.spec import LatentSpec, window_of
from longvie_core.training.data.starts import Start, degrade_starts
from longvie_core.training.data.table import LatentTable
from longvie_core.training.data.video_folder import Preprocessing, VideoFolder
from longvie_core.training.degradation.dense import DepthDegradation, degrade_depth
from longvie_core.training.degradation.frames import ColorDrift, FrameDegradation, RoundTrips, Tint, vae_round_trip
from longvie_core.training.networks.whole_clip_vae import tiny_vae
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene

SETTINGS = SceneSettings(width=32, height=32, clips=6, frames=5, grid=4)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    found = open_set(tmp_path_factory.mktemp("scenes"), SETTINGS, 3)
    list(found.render(range(2)))
    return found


@pytest.fixture(scope="module")
def codec() -> TrainingCodec:
    torch.manual_seed(0)
    return TrainingCodec(tiny_vae(4), precision=torch.float32)


# ---- rendered scenes


def test_clips_are_those_of_the_plan_with_the_frames_before_them(scenes: SceneSet) -> None:
    source = SceneClips(scenes, 2)
    assert (len(source), source.capacity) == (12, 18)
    for number in range(len(source)):
        clip, (video, place) = source[number], divmod(number, 6)
        shown = list(scenes.settings.plan.control_frames(place))
        np.testing.assert_array_equal(clip.frames, scenes.rgb[video][shown])
        np.testing.assert_array_equal(clip.dense[..., 1], scenes.dense[video][shown])
        np.testing.assert_array_equal(clip.sparse, scenes.sparse[video, place])
        np.testing.assert_array_equal(clip.past, scenes.rgb[video][max(0, shown[0] - 16) : shown[0]])
        assert clip.first == (place == 0)
        assert source.past(number) == len(clip.past) == min(PAST_FRAMES, 4 * place)


def test_a_history_ends_with_the_start_frame(scenes: SceneSet) -> None:
    clip = SceneClips(scenes, 2)[6 + 3]
    np.testing.assert_array_equal(clip.history(8), scenes.rgb[1][12 - 7 : 12 + 1])
    np.testing.assert_array_equal(clip.history(1), clip.frames[:1])
    for length in (0, 14):
        with pytest.raises(ValueError, match=f"history of {length} frames"):
            clip.history(length)


def test_videos_that_are_not_rendered_are_not_trained_on(scenes: SceneSet) -> None:
    with pytest.raises(ValueError, match="1 of the first 3 training videos"):
        SceneClips(scenes)


def test_copies_are_mirror_images(scenes: SceneSet) -> None:
    plain, both = SceneClips(scenes, 2), SceneClips(scenes, 2, mirrored=True)
    assert (len(both), both.capacity) == (24, 36)
    assert len({plain.identity, both.identity, SceneClips(scenes, 1, mirrored=True).identity}) == 3
    for number in (0, 4, 11):
        clip, same, copy = plain[number], both[number], both[12 + number]
        for name in ("frames", "dense", "sparse", "past"):
            np.testing.assert_array_equal(getattr(same, name), getattr(clip, name))
            np.testing.assert_array_equal(getattr(copy, name), np.flip(getattr(clip, name), axis=2))
        assert both.past(12 + number) == plain.past(number) == len(copy.past)
    np.testing.assert_array_equal(both[12 + 6].frames, np.flip(scenes.rgb[1, :5], axis=2))


# ---- a folder of videos


class CountingDepth(ParallaxDepth):
    """Counts the calls, since work is not to be done twice."""

    calls = 0

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        type(self).calls += 1
        return super().__call__(frames)


def write_video(path: Path, frames: int, seed: int) -> list[np.ndarray]:
    pictures = [frame.rgb for frame in render_frames(make_scene(seed), frames, Fraction(4), 64, 48)]
    with VideoWriter(path, 64, 48, Fraction(16), codec="lossless") as writer:
        for picture in pictures:
            writer.write(picture)
    return pictures


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    folder = tmp_path_factory.mktemp("videos")
    pictures = write_video(folder / "b.mkv", 23, 5)
    write_video(folder / "a.mkv", 9, 6)
    write_video(folder / "short.mkv", 7, 7)
    (folder / "b.txt").write_text("a blue box\na red ball\n")
    (folder / "notes.txt").write_text("no video\n")
    return folder, pictures


def video_folder(folder: Path, work: Path) -> VideoFolder:
    preprocessing = Preprocessing(CountingDepth(), LucasKanade(), grid=6, fit="stretch")
    return VideoFolder(folder, work, preprocessing, 64, 48, 9, Fraction(16))


def test_any_videos_become_clips_with_controls_made_once(videos, tmp_path: Path) -> None:
    folder, pictures = videos
    source = video_folder(folder, tmp_path)
    assert [path.name for path in source.too_short] == ["short.mkv"]
    assert [path.name for path in source.prepare()] == ["a.mkv", "b.mkv"]
    calls = CountingDepth.calls
    assert len(source) == 1 + 2
    assert [source.text(number) for number in range(3)] == ["", "a blue box", "a red ball"]
    clip = video_folder(folder, tmp_path)[2]
    assert CountingDepth.calls == calls > 0
    np.testing.assert_array_equal(clip.frames, pictures[8:17])
    np.testing.assert_array_equal(clip.past, pictures[:8])
    assert source.past(2) == 8 and source.past(1) == 0
    assert clip.text == "a red ball"
    assert clip.dense.shape == clip.sparse.shape == clip.frames.shape
    # Global normalisation over the 17 frames shown: both clips together reach black and white, and share a frame.
    other = source[1]
    assert min(clip.dense.min(), other.dense.min()) == 0 and max(clip.dense.max(), other.dense.max()) == 255
    np.testing.assert_array_equal(clip.dense[0], other.dense[-1])
    assert clip.sparse.any()
    with pytest.raises(IndexError, match="outside 0 .. 2"):
        source[3]


def test_an_interrupted_preparation_goes_on(videos, tmp_path: Path) -> None:
    folder, _ = videos
    source = video_folder(folder, tmp_path)
    next(source.prepare())
    calls = CountingDepth.calls
    again = video_folder(folder, tmp_path)
    assert next(again.prepare()).name == "a.mkv"
    assert CountingDepth.calls == calls
    assert again.identity == source.identity


def test_folders_without_long_enough_videos_are_refused(videos, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give one with videos"):
        video_folder(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no video of at least 9 frames"):
        video_folder(tmp_path / "empty", tmp_path)


# ---- latents


def test_the_codec_is_the_vae(codec: TrainingCodec, scenes: SceneSet) -> None:
    torch.manual_seed(0)
    chunks = TrainingCodec(tiny_vae(4), whole=False, precision=torch.float32)
    frames = scenes.rgb[0, :5]
    latents = codec.encode(frames)
    assert latents.shape == (1, 16, 2, 4, 4)
    torch.testing.assert_close(latents, chunks.encode(frames), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(codec.decode(latents), chunks.decode(latents), atol=1e-5)
    grey = np.full((4, 32, 32, 3), 127.5)
    wanted = codec.encode(np.concatenate([frames[:1], grey]))
    torch.testing.assert_close(codec.encode_first_frame(frames[0], 5), wanted, atol=1e-5, rtol=1e-4)
    # Causal: the first latent frame is that of the first picture alone, which the losses rely on.
    torch.testing.assert_close(wanted[:, :, :1], codec.encode(frames[:1]), atol=1e-5, rtol=1e-4)


def test_a_table_knows_what_is_committed(tmp_path: Path) -> None:
    table = LatentTable(tmp_path, 4)
    assert not table.done("x", [0, 1]).any()
    table.reserve({"x": (2,)})
    table.write("x", 1, torch.tensor([[1.0, 2.5]]))
    with pytest.raises(ValueError, match="1 clips is not encoded"):
        table.read("x", [1])
    table.commit()
    table.write("x", 2, torch.tensor([[3.0, 4.0]]))  # never committed, as after a crash
    again = LatentTable(tmp_path, 4)
    assert again.done("x", [0, 1, 2]).tolist() == [False, True, False]
    assert again.read("x", [1, 1]).tolist() == [[1.0, 2.5], [1.0, 2.5]]
    again.reserve({"x": (2,)})  # does not clear it
    assert again.done("x", [1]).all()
    with pytest.raises(ValueError, match="4 rows instead of 5"):
        LatentTable(tmp_path, 5).read("x", [1])


SPEC = LatentSpec(
    histories=(0, 5, 8),
    variants=2,
    first_frame=FrameDegradation(round_trip_share=1.0, round_trips=(0, 1, 2), round_trip_weights=(1, 1, 1)),
    depth=DepthDegradation(kernels=(3, 5)),
)


def half(value: torch.Tensor) -> torch.Tensor:
    return value.half().float()


def test_latents_are_those_of_the_clips(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    source = SceneClips(scenes, 2)
    latents = ClipLatents(source, SPEC, tmp_path, "vae")
    latents.reserve()
    rows = [0, 3]
    assert latents.missing(rows) == 2
    assert list(latents.fill(rows, codec)) == rows
    assert latents.missing(rows) == 0 and latents.missing([0, 1]) == 1
    clip = source[3]
    for name, expected in {
        "video": codec.encode(clip.frames),
        "dense": codec.encode(clip.dense),
        "dense_first": codec.encode_first_frame(clip.dense[0], 5),
        "sparse": codec.encode(clip.sparse),
        "sparse_first": codec.encode_first_frame(clip.sparse[0], 5),
        "image": codec.encode_first_frame(clip.frames[0], 5),
        "history_5": codec.encode(scenes.rgb[0, 8:13]),
        "history_8": codec.encode(scenes.rgb[0, 5:10]),  # of 8 frames the VAE keeps the first 5
    }.items():
        torch.testing.assert_close(latents.clean.read(name, [3]), half(expected), atol=0, rtol=0)
    assert not latents.clean.done("history_5", [0])[0]  # nothing comes before the first clip


def test_degraded_variants_are_those_drawn(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    source = SceneClips(scenes, 2)
    latents = ClipLatents(source, SPEC, tmp_path, "vae")
    latents.reserve()
    rows = [3, 9]
    list(latents.fill(rows, codec))
    trips = set()
    for row in rows:
        for variant in range(2):
            clip, table = source[row], latents.table(variant)
            (operator,) = SPEC.frame_operators(row, variant)
            assert isinstance(operator, RoundTrips)
            trips.add(operator.times)
            frames = clip.history(9)  # the fewest that hold a history of 8 and that the VAE does not cut
            for _ in range(operator.times):
                frames = vae_round_trip(frames, codec)
            expected = {
                "image": codec.encode_first_frame(frames[-1], 5),
                "history_5": codec.encode(frames[-5:]),
                "history_8": codec.encode(frames[-8:-3]),
                "dense": codec.encode(degrade_depth(clip.dense, SPEC.depth_operators(row, variant))),
            }
            for name, value in expected.items():
                torch.testing.assert_close(table.read(name, [row]), half(value), atol=0, rtol=0)
    assert len(trips) > 1


def test_encoding_goes_on_where_it_stopped(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    source, wanted = SceneClips(scenes, 2), LatentSpec()
    latents = ClipLatents(source, wanted, tmp_path, "vae")
    latents.reserve()
    list(latents.fill(range(2), codec))
    again = ClipLatents(source, wanted, tmp_path, "vae")
    again.reserve()
    assert list(again.fill(range(4), codec)) == [2, 3]
    assert ClipLatents(source, wanted, tmp_path, "another vae").missing(range(4)) == 4
    # Another way of degrading leaves the clean latents where they are.
    more = ClipLatents(source, LatentSpec(depth=DepthDegradation(halvings=2)), tmp_path, "vae")
    assert more.clean.done("video", range(4)).all() and more.missing(range(4)) == 4


def test_regeneration_asks_for_the_backbone(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    wanted = LatentSpec(first_frame=FrameDegradation(round_trip_share=0.0))
    latents = ClipLatents(SceneClips(scenes, 2), wanted, tmp_path, "vae")
    latents.reserve()
    with pytest.raises(ValueError, match="needs the pretrained backbone"):
        list(latents.fill([0], codec))
    seen = []

    def regenerator(clip: Clip):
        seen.append(clip.frames[0])
        return lambda noisy, timestep: torch.zeros_like(noisy)

    assert list(latents.fill([0], codec, regenerator)) == [0]
    np.testing.assert_array_equal(seen[0], scenes.rgb[0, 0])


def test_chance_of_operators_is_that_of_degraded_clips() -> None:
    wanted = LatentSpec(first_frame=FrameDegradation(), depth=DepthDegradation())
    drawn = [wanted.frame_operators(row, 0) for row in range(300)]
    assert all(len(operators) == 1 for operators in drawn)
    share = sum(isinstance(operators[0], RoundTrips) for operators in drawn) / 300
    assert abs(share - 0.2) < 4 * (0.2 * 0.8 / 300) ** 0.5
    assert all(wanted.depth_operators(row, 0) for row in range(50))
    assert wanted.depth_operators(3, 0) == wanted.depth_operators(3, 0) != wanted.depth_operators(3, 1)


@pytest.mark.parametrize(
    ("past", "histories", "window"), [(16, (0, 5, 8), 9), (16, (0, 16), 17), (0, (0, 5), 1), (4, (0, 5, 8), 5), (16, (0,), 1)]
)
def test_windows_hold_the_longest_history(past: int, histories: tuple[int, ...], window: int) -> None:
    assert window_of(past, histories) == window


def test_start_and_history_are_cut_from_one_video(scenes: SceneSet) -> None:
    before = torch.from_numpy(SceneClips(scenes, 2)[4].history(9))
    made = start_pictures(before, 5, (5, 8, 9), vision=False)
    assert {name: picture.length for name, picture in made.items()} == {
        "image": 5,
        "history_5": 5,
        "history_8": 5,
        "history_9": 9,
    }
    assert torch.equal(made["image"].frames, before[-1:])
    assert torch.equal(made["history_8"].frames, before[1:6])  # of 8 frames the VAE keeps the first 5
    assert torch.equal(made["history_9"].frames, before)


# ---- many clips at once


def test_pictures_have_the_same_bits_on_any_device(codec: TrainingCodec) -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(device_pixels(levels).numpy(), pixels_from_uint8(levels.numpy()))
    pixels = np.random.default_rng(0).uniform(-1.2, 1.2, 100_000).astype(np.float32)
    np.testing.assert_array_equal(device_uint8(torch.from_numpy(pixels)).numpy(), frames_to_uint8(pixels))
    frame = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
    seen = []
    whole, codec.codec.whole.encode = codec.codec.whole.encode, lambda clip: seen.append(clip) or torch.zeros(1, 16, 2, 4, 4)
    codec.encode_first_frame(frame, 5)
    codec.codec.whole.encode = whole
    np.testing.assert_array_equal(seen[0][0].permute(1, 2, 3, 0).numpy(), first_frame_then_grey(frame, 5))


@pytest.mark.parametrize(("batch", "workers"), [(3, 0), (64, 2)])
def test_groups_of_clips_are_encoded_like_single_ones(
    scenes: SceneSet, codec: TrainingCodec, tmp_path: Path, batch: int, workers: int
) -> None:
    source, found = SceneClips(scenes, 2), []
    for name, options in (("one", {}), ("many", {"batch": batch, "workers": workers})):
        latents = ClipLatents(source, SPEC, tmp_path / name, "vae")
        latents.reserve()
        assert list(latents.fill(range(12), codec, **options)) == list(range(12))
        assert latents.missing(range(12)) == 0
        found.append(latents)
    one, many = found
    for table in (None, 0, 1):
        for path in one.table(table).folder.glob("*.npy"):
            name = path.name.removesuffix(".npy")
            if name.endswith(".done"):
                continue
            rows = [row for row in range(12) if one.table(table).done(name, [row])[0]]
            wanted, got = (latents.table(table).read(name, rows) for latents in (one, many))
            # A pixel that rounding moves to the next of 255 values after a round trip is seen in the latents.
            torch.testing.assert_close(got, wanted, atol=2e-2 if isinstance(table, int) else 2e-3, rtol=1e-3)


def test_as_few_calls_of_the_vae_as_there_are_shapes(
    scenes: SceneSet, codec: TrainingCodec, tmp_path: Path, monkeypatch
) -> None:
    calls = []
    encode = TrainingCodec.encode_clips

    def counted(self: TrainingCodec, clips: torch.Tensor, frames: int) -> torch.Tensor:
        calls.append((len(clips), clips.shape[1], frames))
        return encode(self, clips, frames)

    monkeypatch.setattr(TrainingCodec, "encode_clips", counted)
    latents = ClipLatents(SceneClips(scenes, 2), LatentSpec(histories=(0, 5, 8, 9)), tmp_path, "vae")
    latents.reserve()
    list(latents.fill(range(12), codec, batch=40))
    # Each clip's three videos and three first frames; of six clips five have 5 frames of history, and four have 8 and 9.
    # Of 8 frames the VAE sees 5, which is the shape of the videos: 3 * 12 + 2 * (5 + 4) = 54, in parts of 40.
    assert sorted(calls) == [(8, 9, 9), (14, 5, 5), (36, 1, 5), (40, 5, 5)]


def test_starts_are_degraded_together_each_in_its_own_way(scenes: SceneSet, codec: TrainingCodec) -> None:
    source = SceneClips(scenes, 2)
    tint = Tint(0.5, (0.1, 0.0, -0.1), 0.3, 0.08, 7)
    operators = [(RoundTrips(1),), (), (RoundTrips(3), tint), (RoundTrips(0),), (tint,), (RoundTrips(2),)]
    starts = [
        Start(torch.from_numpy(source[row].history(window)), own, lambda noisy, timestep: noisy)
        for row, window, own in zip((3, 4, 5, 9, 10, 1), (9, 9, 9, 9, 5, 5), operators, strict=True)
    ]
    for batch in (1, 4):
        for found, start in zip(degrade_starts(starts, codec, batch), starts, strict=True):
            frames = start.frames.numpy()
            for operator in start.operators:
                if isinstance(operator, Tint):
                    frames = operator(frames, codec, None)
                    continue
                for _ in range(operator.times):
                    frames = vae_round_trip(frames, codec)
            assert np.abs(found.numpy().astype(int) - frames).max() <= (0 if batch == 1 else 2)


def test_single_clips_may_be_tinted_in_a_group(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    drifting = FrameDegradation(round_trip_share=1.0, drift=ColorDrift(probability=1.0))
    latents = ClipLatents(SceneClips(scenes, 2), LatentSpec((0, 5), 1, drifting), tmp_path, "vae")
    latents.reserve()
    assert list(latents.fill(range(3), codec, batch=2)) == [0, 1, 2]
    image = latents.table(0).read("image", [1])
    frames = SceneClips(scenes, 2)[1].history(5)
    for operator in latents.spec.frame_operators(1, 0):
        frames = operator(frames, codec, None)
    torch.testing.assert_close(image, half(codec.encode_first_frame(frames[-1], 5)), atol=2e-2, rtol=1e-2)


def test_what_is_there_is_not_encoded_again(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    source = SceneClips(scenes, 2)
    list_of = {}
    for histories in ((0, 5), (0, 5, 8)):
        latents = ClipLatents(source, LatentSpec(histories), tmp_path, "vae")
        latents.reserve()
        calls = []
        encode = codec.encode_clips
        codec.encode_clips = lambda clips, frames, calls=calls, encode=encode: calls.append(len(clips)) or encode(clips, frames)
        list_of[histories] = list(latents.fill(range(6), codec, batch=8))
        del codec.encode_clips
    assert list_of == {(0, 5): list(range(6)), (0, 5, 8): [2, 3, 4, 5]}
    assert calls == [4]  # only the longer history, of those clips that have it


def test_vision_sees_the_start_frames(scenes: SceneSet, codec: TrainingCodec, tmp_path: Path) -> None:
    source, twice = SceneClips(scenes, 2), FrameDegradation(round_trip_share=1.0, round_trips=(2,), round_trip_weights=(1,))
    latents = ClipLatents(source, LatentSpec(first_frame=twice, vision=True), tmp_path, "vae")
    latents.reserve()
    seen = []

    def vision(frame: np.ndarray) -> torch.Tensor:
        seen.append(frame)
        return torch.full((1, 257, 1280), float(len(seen)))

    list(latents.fill([0, 7], codec, vision=vision, batch=2))
    for row in (0, 7):
        clean, weak = (int(latents.table(variant).read("vision", [row])[0, 0, 0]) for variant in (None, 0))
        start = source[row].frames[:1]
        np.testing.assert_array_equal(seen[clean - 1], start[0])
        worn = vae_round_trip(vae_round_trip(start, codec), codec)[0]
        assert np.abs(seen[weak - 1].astype(int) - worn).max() <= 2
        assert np.abs(seen[weak - 1].astype(int) - start[0]).max() > 2
