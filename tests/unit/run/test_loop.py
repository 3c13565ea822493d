"""The clip loop with a backend that records what it is asked: what each clip gets from the video so far."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from longvie_core.disk.cache import ControlCache
from longvie_core.model.clip import HistorySettings
from longvie_core.model.noise import UnifiedNoise, initial_latents
from longvie_core.model.schedule import flow_sigmas, sample_euler
from longvie_core.plan import ClipPlan
from longvie_core.run.control_latents import LatentStore, control_latents
from longvie_core.run.job import LoopSettings, Script
from longvie_core.run.loop import Carry, ClipResult, TimedBackend, clip_inputs
from tests.helpers.loops import CalledNoise, generated

PLAN = ClipPlan(width=16, height=16, frames=17, source_frames=17 + 16 * 3)
FIRST = np.full((16, 16, 3), 250, np.uint8)


def grey(*levels: int) -> np.ndarray:
    """Frames [n, 16, 16, 3], one of each grey level."""
    return np.stack([np.full((16, 16, 3), level, np.uint8) for level in levels])


def levels(frames: Iterable[np.ndarray]) -> list[int]:
    """Grey levels of uniform frames."""
    found = [np.unique(frame) for frame in frames]
    assert all(len(values) == 1 for values in found)
    return [int(values[0]) for values in found]


def level_of(clip: int, frame: int) -> int:
    """Grey level that the backend paints frame ``frame`` of clip ``clip`` with."""
    return 40 * clip + frame


@dataclass
class RecordingBackend:
    """Latents hold the clip's number; decoded frames hold :func:`level_of`; every call is written down."""

    plan: ClipPlan
    calls: list[tuple] = field(default_factory=list)
    inputs: list = field(default_factory=list)

    def encode(self, frames: Iterable[np.ndarray]) -> Tensor:
        seen = levels(frames)
        self.calls.append(("encode", seen))
        return self.latents(seen[0], 1 + (len(seen) - 1) // 4)

    def encode_first_frame(self, frame: np.ndarray, frames: int) -> Tensor:
        self.calls.append(("first frame", levels([frame])[0], frames))
        return self.latents(-levels([frame])[0], 1 + (frames - 1) // 4)

    def encode_image(self, frame: np.ndarray, frames: int) -> Tensor:
        self.calls.append(("image", levels([frame])[0], frames))
        return self.latents(levels([frame])[0], 1 + (frames - 1) // 4)

    def sample(self, inputs) -> Tensor:
        self.calls.append(("sample", inputs.clip))
        self.inputs.append(inputs)
        return self.latents(inputs.clip, self.plan.latent_frames)

    def decode(self, latents: Tensor) -> np.ndarray:
        clip = int(latents[0, 0, 0, 0, 0])
        self.calls.append(("decode", clip))
        values = [level_of(clip, frame) for frame in range(self.plan.frames)]
        # Half a level above: truncation gives the level itself, rounding would give the next one at times.
        return np.stack([np.full((16, 16, 3), (value + 0.5) / 127.5 - 1, np.float32) for value in values])

    def latents(self, value: float, frames: int) -> Tensor:
        return torch.full((1, 16, frames, 2, 2), float(value))


@dataclass
class Window:
    """A control whose frame n of the video has grey level ``start + n``."""

    start: int
    asked: list[int] = field(default_factory=list)

    def window(self, plan: ClipPlan, clip: int) -> Iterator[np.ndarray]:
        self.asked.append(clip)
        return iter(grey(*(self.start + number for number in plan.control_frames(clip))))


@dataclass
class Source:
    """A noise source that hands out one number per call."""

    asked: list[tuple] = field(default_factory=list)

    def __call__(self, clip: int, shape: tuple[int, ...]) -> Tensor:
        self.asked.append((clip, shape))
        return torch.full(shape, 0.5 + clip)


def first_carry() -> Carry:
    return Carry(FIRST[None], first=True)


class TestCarry:
    @pytest.mark.parametrize("overlap", [1, 2, 5, 16])
    def test_starts_from_the_first_shared_frame(self, overlap: int) -> None:
        plan = ClipPlan(width=16, height=16, frames=17, overlap=overlap)
        carry = Carry.after(plan, grey(*range(100, 117)))
        start = levels([carry.start_frame(plan)])[0]
        # the frame that the next clip shows first: ``stride`` frames into the finished clip
        assert start == 100 + plan.stride

    @pytest.mark.parametrize("overlap", [1, 2, 5])
    @pytest.mark.parametrize("frames", [1, 5, 8, 12])
    def test_history_ends_with_the_start_frame(self, overlap: int, frames: int) -> None:
        plan = ClipPlan(width=16, height=16, frames=17, overlap=overlap)
        carry = Carry.after(plan, grey(*range(100, 117)))
        seam = 100 + plan.stride
        assert levels(carry.history(plan, frames)) == list(range(seam - frames + 1, seam + 1))

    @pytest.mark.parametrize("overlap", [1, 4, 9])
    @pytest.mark.parametrize("frames", [0, 5, 8, 17])
    def test_a_whole_clip_leaves_every_history_that_is_offered(self, overlap: int, frames: int) -> None:
        plan = ClipPlan(width=16, height=16, frames=81, overlap=overlap)
        carry = Carry.after(plan, grey(*range(81)))
        history = carry.history(plan, frames)
        if frames == 0:
            assert history is None
        else:
            assert levels(history) == list(range(81 - overlap - frames + 1, 81 - overlap + 1))
        assert len(carry.frames) == 17 + overlap - 1, "more is kept than the next clip can ask for"

    def test_reference_case(self) -> None:
        plan = ClipPlan(width=16, height=16)
        carry = Carry.after(plan, grey(*range(81)))
        assert levels([carry.start_frame(plan)]) == [80]
        assert levels(carry.history(plan, 8)) == [73, 74, 75, 76, 77, 78, 79, 80]

    def test_the_given_first_frame_has_no_history(self) -> None:
        carry = first_carry()
        for overlap in (1, 3):
            plan = ClipPlan(width=16, height=16, frames=17, overlap=overlap)
            assert levels([carry.start_frame(plan)]) == [250]
            assert carry.history(plan, 8) is None

    def test_too_short_a_clip_for_the_history_is_named(self) -> None:
        plan = ClipPlan(width=16, height=16, frames=9, overlap=2)
        carry = Carry.after(plan, grey(*range(9)))
        assert levels(carry.history(plan, 8)) == list(range(8))
        with pytest.raises(ValueError, match="left 8 frames up to the seam, but a history of 9 was asked for"):
            carry.history(plan, 9)

    def test_keeps_a_copy_of_its_own(self) -> None:
        frames = grey(*range(17))
        carry = Carry.after(PLAN, frames)
        frames[:] = 0
        assert levels(carry.frames) == list(range(17))


class TestGenerate:
    def run(self, clips: range = range(4), carry: Carry | None = None, **changes: object) -> RecordingBackend:
        backend = RecordingBackend(PLAN)
        self.dense, self.sparse, self.noise = Window(0), Window(100), Source()
        given = {"dense": self.dense, "sparse": self.sparse} | changes
        self.results = list(generated(PLAN, clips, carry or first_carry(), noise=self.noise, backend=backend, **given))
        return backend

    def test_clips_come_in_order_with_all_their_frames(self) -> None:
        self.run()
        assert [result.clip for result in self.results] == [0, 1, 2, 3]
        for result in self.results:
            assert result.frames.dtype == np.uint8
            assert levels(result.frames) == [level_of(result.clip, frame) for frame in range(17)]
            assert float(result.latents.unique()) == result.clip

    def test_each_clip_starts_from_the_last_frame_of_the_one_before(self) -> None:
        backend = self.run()
        starts = [250, level_of(0, 16), level_of(1, 16), level_of(2, 16)]
        assert [levels([inputs.start_frame])[0] for inputs in backend.inputs] == starts
        assert [float(inputs.image.unique()) for inputs in backend.inputs] == starts
        assert [call for call in backend.calls if call[0] == "image"] == [("image", start, 17) for start in starts]

    def test_history_is_the_first_five_of_the_last_eight(self) -> None:
        backend = self.run(dense=None, sparse=None)
        assert backend.inputs[0].history is None
        encoded = [call[1] for call in backend.calls if call[0] == "encode"]
        assert encoded == [[level_of(clip, frame) for frame in range(9, 14)] for clip in range(3)]
        assert [inputs.history.shape[2] for inputs in backend.inputs[1:]] == [2, 2, 2]

    @pytest.mark.parametrize(("frames", "encoded"), [(1, range(16, 17)), (5, range(12, 17)), (17, range(17))])
    def test_history_of_another_length(self, frames: int, encoded: range) -> None:
        backend = self.run(range(2), history=HistorySettings(frames), dense=None, sparse=None)
        assert [call[1] for call in backend.calls if call[0] == "encode"] == [list(encoded)]

    def test_no_history(self) -> None:
        backend = self.run(history=HistorySettings(0), dense=None, sparse=None)
        assert all(inputs.history is None for inputs in backend.inputs)
        assert not [call for call in backend.calls if call[0] == "encode"]

    def test_controls_are_those_of_the_clip(self) -> None:
        backend = self.run()
        assert self.dense.asked == self.sparse.asked == [0, 1, 2, 3]
        for clip, inputs in enumerate(backend.inputs):
            for name, start in (("dense", 0), ("sparse", 100)):
                control = getattr(inputs, name)
                first = start + 16 * clip
                assert control.shape == (1, 36, 5, 2, 2)
                assert (control[:, :16] == first).all() and (control[:, 20:] == -first).all()
                assert ("encode", list(range(first, first + 17))) in backend.calls
                assert ("first frame", first, 17) in backend.calls

    @pytest.mark.parametrize("absent", ["dense", "sparse"])
    def test_an_absent_modality_stays_absent(self, absent: str) -> None:
        backend = self.run(**{absent: None})
        assert all(getattr(inputs, absent) is None for inputs in backend.inputs)
        assert all(getattr(inputs, "sparse" if absent == "dense" else "dense") is not None for inputs in backend.inputs)

    def test_noise_is_asked_for_anew_and_passed_on_unblended(self) -> None:
        backend = self.run()
        assert self.noise.asked == [(clip, (1, 16, 5, 2, 2)) for clip in range(4)]
        assert [float(inputs.noise.unique()) for inputs in backend.inputs] == [0.5, 1.5, 2.5, 3.5]

    def test_unified_noise_fits_as_the_source(self) -> None:
        backend = RecordingBackend(PLAN)
        list(generated(PLAN, range(3), first_carry(), None, None, UnifiedNoise(4).for_clip, backend))
        expected = torch.randn((1, 16, 5, 2, 2), generator=torch.Generator().manual_seed(4))
        assert all(torch.equal(inputs.noise, expected) for inputs in backend.inputs)

    def test_going_on_from_a_carry_is_the_same_as_never_stopping(self) -> None:
        whole = self.run()
        results = self.results
        rest = self.run(range(2, 4), Carry.after(PLAN, results[1].frames))
        for a, b in zip(whole.inputs[2:], rest.inputs, strict=True):
            assert a.clip == b.clip
            np.testing.assert_array_equal(a.start_frame, b.start_frame)
            for name in ("image", "dense", "sparse", "history", "noise"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(results[2:], self.results, strict=True))

    def test_overlap_of_several_frames(self) -> None:
        plan = ClipPlan(width=16, height=16, frames=17, overlap=3, source_frames=17 + 14)
        backend = RecordingBackend(plan)
        list(generated(plan, range(2), first_carry(), Window(0), None, Source(), backend))
        second = backend.inputs[1]
        assert levels([second.start_frame]) == [14]
        assert ("encode", [7, 8, 9, 10, 11]) in backend.calls
        assert float(second.dense[:, :16].unique()) == 14, "the control of clip 1 starts where its picture does"

    def test_nothing_is_done_before_it_is_asked_for(self) -> None:
        backend = RecordingBackend(PLAN)
        results = generated(PLAN, range(4), first_carry(), None, None, Source(), backend)
        assert backend.calls == []
        next(results)
        assert [call for call in backend.calls if call[0] == "sample"] == [("sample", 0)]

    @pytest.mark.parametrize(("frames", "history"), [(5, 8), (9, 17), (17, 17)])
    def test_a_history_that_no_clip_can_give_is_refused_before_the_first_is_sampled(self, frames: int, history: int) -> None:
        plan = ClipPlan(width=16, height=16, frames=frames, overlap=2, source_frames=4 * frames)
        backend = RecordingBackend(plan)
        with pytest.raises(ValueError, match=f"{history}"):
            list(generated(plan, range(2), first_carry(), None, None, Source(), backend, HistorySettings(history)))
        assert not [call for call in backend.calls if call[0] == "sample"]


def test_memory_does_not_grow_with_the_clips() -> None:
    class Counting(RecordingBackend):
        def sample(self, inputs) -> Tensor:
            alive.append(sum(reference() is not None for reference in references))
            return self.latents(inputs.clip % 4, self.plan.latent_frames)

    references: list[weakref.ref] = []
    alive: list[int] = []
    plan = ClipPlan(width=16, height=16, frames=9, source_frames=8 * 20 + 1)
    for result in generated(plan, range(20), first_carry(), Window(0), None, Source(), Counting(plan)):
        references += [weakref.ref(result.frames), weakref.ref(result.latents), weakref.ref(result)]
        del result
    # While clip k is sampled, at most the pictures and latents of clip k - 1 are still held.
    assert len(alive) == 20 and max(alive) <= 2
    gc.collect()
    assert not any(reference() is not None for reference in references)


class TestReadingAhead:
    @dataclass
    class Slow(RecordingBackend):
        """Samples until the control pictures of the next clip are read, for 10 s at most."""

        window: Window | None = None
        seen: list[tuple[int, bool]] = field(default_factory=list)

        def sample(self, inputs) -> Tensor:
            limit = time.monotonic() + 10
            while len(self.window.asked) < min(inputs.clip + 2, 4) and time.monotonic() < limit:
                time.sleep(0.001)
            self.seen.append((inputs.clip, max(self.window.asked)))
            return super().sample(inputs)

    def test_the_next_clips_pictures_are_read_while_a_clip_is_sampled_and_no_others(self) -> None:
        window = Window(0)
        backend = self.Slow(PLAN, window=window)
        list(generated(PLAN, range(4), first_carry(), window, None, Source(), backend))
        assert backend.seen == [(0, 1), (1, 2), (2, 3), (3, 3)]
        assert window.asked == [0, 1, 2, 3], "pictures are read once"

    def test_pictures_that_cannot_be_read_end_the_run_with_their_own_text_after_the_clip_before(self) -> None:
        class Torn(Window):
            def window(self, plan: ClipPlan, clip: int) -> Iterator[np.ndarray]:
                yield from super().window(plan, clip)
                if clip == 2:
                    raise ValueError("depth_02.mp4: frame 7 is damaged")

        results = generated(PLAN, range(4), first_carry(), Torn(0), None, Source(), RecordingBackend(PLAN))
        assert [next(results).clip, next(results).clip] == [0, 1]
        with pytest.raises(ValueError, match="depth_02.mp4: frame 7 is damaged"):
            next(results)
        assert not reading_threads()

    @pytest.mark.parametrize("way", ["closed", "failed"])
    def test_a_run_that_ends_early_stops_its_thread(self, way: str) -> None:
        class Endless(Window):
            read = 0

            def window(self, plan: ClipPlan, clip: int) -> Iterator[np.ndarray]:
                yield from super().window(plan, clip)
                while clip == 1:
                    Endless.read += 1
                    time.sleep(0.001)
                    yield np.zeros((16, 16, 3), np.uint8)

        class Interrupted(RecordingBackend):
            def sample(self, inputs) -> Tensor:
                limit = time.monotonic() + 10
                while not Endless.read and time.monotonic() < limit:
                    time.sleep(0.001)
                if way == "failed":
                    raise InterruptedError("by the user")
                return super().sample(inputs)

        results = generated(PLAN, range(4), first_carry(), Endless(0), None, Source(), Interrupted(PLAN))
        if way == "failed":
            with pytest.raises(InterruptedError, match="by the user"):
                next(results)
        else:
            next(results)
            assert reading_threads()
            results.close()
        assert Endless.read and not reading_threads()


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("longvie-read-ahead")]


@dataclass
class Content(Window):
    """A window with a digest, as the store wants it."""

    def digest(self, plan: ClipPlan, clip: int) -> str:
        return f"{self.start} {plan.control_frames(clip)}"


class TestStore:
    def run(self, folder: Path, dense: Content, clips: range = range(4), **changes: object) -> tuple[list, RecordingBackend]:
        self.store = LatentStore(ControlCache(folder, 1 << 30), "vae")
        backend = RecordingBackend(PLAN)
        with self.store:
            carry = first_carry() if clips.start == 0 else Carry.after(PLAN, grey(*range(17)))
            given = {"dense": dense, "sparse": Content(100), "noise": Source(), "backend": backend} | changes
            return list(generated(PLAN, clips, carry, store=self.store, **given)), backend

    def test_a_second_run_encodes_and_reads_no_control_and_samples_from_the_same_bits(self, tmp_path: Path) -> None:
        dense, again = Content(0), Content(0)
        _, first = self.run(tmp_path, dense)
        assert (self.store.misses, self.store.hits) == (8, 0)
        _, second = self.run(tmp_path, again)
        assert (self.store.misses, self.store.hits) == (0, 8)
        assert dense.asked == [0, 1, 2, 3] and again.asked == []
        assert not [call for call in second.calls if call[0] == "first frame"]
        # What is left to encode are the histories: five frames each.
        assert {len(call[1]) for call in second.calls if call[0] == "encode"} == {5}
        for ours, theirs in zip(second.inputs, first.inputs, strict=True):
            assert torch.equal(ours.dense, theirs.dense) and torch.equal(ours.sparse, theirs.sparse)

    def test_only_what_changed_is_read_and_encoded(self, tmp_path: Path) -> None:
        self.run(tmp_path, Content(0))
        _, backend = self.run(tmp_path, Content(1), range(2, 4))
        assert (self.store.misses, self.store.hits) == (2, 2)
        assert [call[1] for call in backend.calls if call[0] == "first frame"] == [33, 49]

    def test_with_and_without_a_store_the_inputs_are_the_same(self, tmp_path: Path) -> None:
        _, kept = self.run(tmp_path, Content(0))
        plain = RecordingBackend(PLAN)
        list(generated(PLAN, range(4), first_carry(), Window(0), Window(100), Source(), plain))
        for ours, theirs in zip(kept.inputs, plain.inputs, strict=True):
            assert torch.equal(ours.dense, theirs.dense) and torch.equal(ours.sparse, theirs.sparse)


class TestTimedBackend:
    def test_adds_up_the_time_in_the_model_and_nothing_else(self) -> None:
        class Slow(RecordingBackend):
            def sample(self, inputs) -> Tensor:
                time.sleep(0.05)
                return super().sample(inputs)

            def decode(self, latents: Tensor) -> np.ndarray:
                time.sleep(0.05)
                return super().decode(latents)

        timed = TimedBackend(Slow(PLAN))
        results: list[ClipResult] = []
        started = time.perf_counter()
        for result in generated(PLAN, range(2), first_carry(), Window(0), None, Source(), timed):
            results.append(result)
            time.sleep(0.2)
        assert 0.2 <= timed.seconds <= time.perf_counter() - started - 0.4
        plain = list(generated(PLAN, range(2), first_carry(), Window(0), None, Source(), RecordingBackend(PLAN)))
        assert all(np.array_equal(ours.frames, theirs.frames) for ours, theirs in zip(results, plain, strict=True))

    def test_time_until_an_error_counts(self) -> None:
        class Failing(RecordingBackend):
            def sample(self, inputs) -> Tensor:
                time.sleep(0.05)
                raise InterruptedError

        timed = TimedBackend(Failing(PLAN))
        with pytest.raises(InterruptedError):
            list(generated(PLAN, range(2), first_carry(), None, None, Source(), timed))
        assert timed.seconds >= 0.05


def test_clip_inputs_is_one_round_of_the_loop() -> None:
    backend = RecordingBackend(PLAN)
    carry = Carry.after(PLAN, grey(*range(50, 67)))
    noise, dense, sparse = torch.zeros(1, 16, 5, 2, 2), torch.ones(1, 36, 5, 2, 2), torch.ones(1, 36, 5, 2, 2)
    script = Script(PLAN, None, None, FIRST)
    settings = LoopSettings(CalledNoise(lambda *_: noise))
    inputs = clip_inputs(script, 2, carry, dense, sparse, settings, backend)
    assert inputs.clip == 2 and levels([inputs.start_frame]) == [66]
    assert inputs.noise is noise and inputs.dense is dense and inputs.sparse is sparse
    assert float(inputs.history.unique()) == 59  # the first of the last eight


def test_control_latents_of_one_clip() -> None:
    latents = control_latents(Window(7), PLAN, 2, RecordingBackend(PLAN))
    first = 7 + 16 * 2
    assert latents.shape == (1, 36, 5, 2, 2)
    assert (latents[:, :16] == first).all() and (latents[:, 20:] == -first).all()
    assert (latents[:, 16:20, 0] == 1).all() and (latents[:, 16:20, 1:] == 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frames": -1}, "history of -1 frames is outside 0 .. 17"),
        ({"frames": 18}, "history of 18 frames is outside 0 .. 17"),
        ({"first_frame_sigma": -0.1}, "first frame sigma -0.1 is outside 0 .. 1"),
        ({"first_frame_sigma": 1.1}, "first frame sigma 1.1 is outside 0 .. 1"),
    ],
)
def test_history_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HistorySettings(**settings)


class TestInitialLatents:
    NOISE = torch.randn((1, 16, 3, 2, 2), generator=torch.Generator().manual_seed(0))

    def test_without_history_is_the_noise(self) -> None:
        assert torch.equal(initial_latents(self.NOISE, None), self.NOISE)

    def test_with_history_leans_on_its_last_latent(self) -> None:
        history = torch.stack([torch.full((1, 16, 2, 2), value) for value in (7.0, 27.0)], dim=2)
        before = self.NOISE.clone()
        got = initial_latents(self.NOISE, history)
        expected = 2 / 27 * 27 + 25 / 27 * self.NOISE[:, :, 0].numpy()
        np.testing.assert_allclose(got[:, :, 0].numpy(), expected, rtol=0, atol=1e-5)
        assert torch.equal(got[:, :, 1:], self.NOISE[:, :, 1:]) and torch.equal(self.NOISE, before)

    def test_sigma_one_is_no_blend(self) -> None:
        assert torch.equal(initial_latents(self.NOISE, torch.ones(1, 16, 1, 2, 2), 1.0), self.NOISE)


class TestSampleEuler:
    def recording(self, positive: float, negative: float):
        calls: list[tuple[float, bool]] = []

        def velocity(latents: Tensor, timestep: Tensor, is_positive: bool) -> Tensor:
            assert timestep.shape == (1,)
            calls.append((timestep.item(), is_positive))
            return torch.full_like(latents, positive if is_positive else negative)

        return velocity, calls

    def test_constant_velocity_ends_at_start_minus_velocity_after_any_steps(self) -> None:
        for steps in (1, 4, 9):
            velocity, _ = self.recording(3.0, 1.0)
            *_, last = sample_euler(velocity, torch.tensor([10.0, 20.0]), flow_sigmas(steps), 5.0)
            # guided velocity 1 + 5 * (3 - 1) = 11; sigma runs from 1 to 0
            torch.testing.assert_close(last, torch.tensor([-1.0, 9.0]), rtol=0, atol=1e-5)

    def test_every_step_by_hand(self) -> None:
        velocity, calls = self.recording(3.0, 1.0)
        got = [latents.item() for latents in sample_euler(velocity, torch.tensor([0.0]), flow_sigmas(4), 2.0)]
        np.testing.assert_allclose(got, [-5 * (1 - sigma) for sigma in (0.9375, 5 / 6, 0.625, 0)], atol=1e-5)
        np.testing.assert_allclose([t for t, _ in calls], np.repeat([1000, 937.5, 2500 / 3, 625], 2), atol=1e-2)
        assert [positive for _, positive in calls] == [True, False] * 4

    def test_at_cfg_1_the_negative_is_never_computed(self) -> None:
        velocity, calls = self.recording(3.0, float("nan"))
        *_, last = sample_euler(velocity, torch.tensor([10.0]), flow_sigmas(5), 1)
        assert last.item() == pytest.approx(7, abs=1e-5)
        assert len(calls) == 5 and all(positive for _, positive in calls)

    def test_at_cfg_0_it_is_the_negative_alone(self) -> None:
        velocity, _ = self.recording(3.0, 1.0)
        *_, last = sample_euler(velocity, torch.tensor([10.0]), flow_sigmas(5), 0.0)
        assert last.item() == pytest.approx(9, abs=1e-5)

    def test_the_starting_latents_stay_as_they_are(self) -> None:
        velocity, _ = self.recording(3.0, 1.0)
        start = torch.tensor([10.0])
        list(sample_euler(velocity, start, flow_sigmas(3), 5.0))
        assert start.item() == 10

    def test_a_straight_path_is_integrated_exactly_and_the_model_sees_the_latest_latents(self) -> None:
        data = torch.tensor([0.25, -2.0], dtype=torch.float64)

        def velocity(latents: Tensor, timestep: Tensor, _positive: bool) -> Tensor:
            return (latents - data) / (timestep / 1000)  # (noise - data), seen from anywhere on the path

        start = torch.tensor([1.0, 5.0], dtype=torch.float64)
        *_, last = sample_euler(velocity, start, flow_sigmas(6).double(), 5.0)
        torch.testing.assert_close(last, data, rtol=0, atol=1e-9)
