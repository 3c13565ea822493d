"""The clip plan against brute force: every frame once, neighbours share their boundary, nothing is lost silently."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longvie_core.plan import ClipPlan, latent_frames


def brute_force_clips(length: int, frames: int, overlap: int, tail: str) -> int:
    """Clips by trying: whole ones that fit (drop), or as many as it takes to cover every frame (pad)."""
    starts = range(0, length + frames, frames - overlap)
    whole = sum(start + frames <= length for start in starts)
    if tail == "drop":
        return whole
    count, covered = 0, set()
    while not covered.issuperset(range(length)):
        covered.update(range(starts[count], starts[count] + frames))
        count += 1
    return count


@st.composite
def plans(draw: st.DrawFn, tail: str | None = None) -> ClipPlan:
    frames = 4 * draw(st.integers(1, 24)) + 1
    tail = tail or draw(st.sampled_from(["drop", "pad"]))
    length = draw(st.integers(frames if tail == "drop" else 1, 6 * frames))
    overlap = draw(st.one_of(st.just(1), st.integers(1, frames - 1)))
    assume(length / (frames - overlap) < 300)
    return ClipPlan(frames=frames, overlap=overlap, tail=tail, source_frames=length)


class TestEveryPlan:
    @given(plans())
    def test_the_number_of_clips_is_the_brute_force_one(self, plan: ClipPlan) -> None:
        assert plan.clips == brute_force_clips(plan.source_frames, plan.frames, plan.overlap, plan.tail)

    @given(plans())
    def test_every_output_frame_is_given_exactly_once_and_in_order(self, plan: ClipPlan) -> None:
        shown = [plan.control_frames(clip)[frame] for clip in range(plan.clips) for frame in plan.kept_frames(clip)]
        assert shown == list(range(plan.output_frames))

    @given(plans())
    def test_every_clip_gives_something(self, plan: ClipPlan) -> None:
        assert all(len(plan.kept_frames(clip)) > 0 for clip in range(plan.clips))

    @given(plans())
    def test_neighbours_share_their_boundary(self, plan: ClipPlan) -> None:
        for clip in range(plan.clips - 1):
            here, there = plan.control_frames(clip), plan.control_frames(clip + 1)
            assert len(here) == len(there) == plan.frames
            assert here[-plan.overlap :] == there[: plan.overlap]
            assert len(set(here) & set(there)) == plan.overlap

    @given(plans("pad"))
    def test_padding_loses_nothing(self, plan: ClipPlan) -> None:
        assert plan.output_frames == plan.source_frames

    @given(plans("drop"))
    def test_dropping_never_invents_a_frame_and_loses_less_than_a_stride(self, plan: ClipPlan) -> None:
        assert plan.control_frames(plan.clips - 1)[-1] < plan.source_frames
        assert 0 <= plan.source_frames - plan.output_frames < plan.stride
        assert plan.output_frames == plan.stitched_frames(plan.clips)

    @given(plans())
    def test_clips_outside_the_plan_are_refused(self, plan: ClipPlan) -> None:
        for clip in (-1, plan.clips):
            with pytest.raises(ValueError, match=f"clip {clip + 1} is outside the plan's clips 1 .. {plan.clips}"):
                plan.control_frames(clip)
            with pytest.raises(ValueError, match=f"clip {clip + 1} is outside the plan's clips 1 .. {plan.clips}"):
                plan.kept_frames(clip)


@pytest.mark.parametrize(
    ("length", "clips", "output"), [(81, 1, 81), (100, 1, 81), (161, 2, 161), (250, 3, 241), (801, 10, 801)]
)
def test_the_papers_plan_drops_as_the_reference_does(length: int, clips: int, output: int) -> None:
    plan = ClipPlan(source_frames=length)
    assert (plan.clips, plan.output_frames) == (clips, output)
    assert plan.control_frames(clips - 1) == range(80 * (clips - 1), 80 * (clips - 1) + 81)
    assert plan.kept_frames(0) == range(81)
    assert all(plan.kept_frames(clip) == range(1, 81) for clip in range(1, clips))


@pytest.mark.parametrize(
    ("length", "clips", "last"),
    [
        (1, 1, range(1)),
        (80, 1, range(80)),
        (81, 1, range(81)),
        (82, 2, range(1, 2)),
        (160, 2, range(1, 80)),
        (241, 3, range(1, 81)),
    ],
)
def test_padding_fills_the_last_clip_and_cuts_it_off_again(length: int, clips: int, last: range) -> None:
    plan = ClipPlan(tail="pad", source_frames=length)
    assert (plan.clips, plan.output_frames, plan.kept_frames(clips - 1)) == (clips, length, last)


def test_overlap_of_several_frames_by_hand() -> None:
    plan = ClipPlan(frames=9, overlap=3, source_frames=21)  # starts at 0, 6, 12
    assert [plan.control_frames(clip) for clip in range(plan.clips)] == [range(9), range(6, 15), range(12, 21)]
    assert [plan.kept_frames(clip) for clip in range(plan.clips)] == [range(9), range(3, 9), range(3, 9)]
    assert plan.output_frames == 21


def test_a_plan_of_unknown_length_has_no_clips() -> None:
    plan = ClipPlan()
    assert (plan.source_frames, plan.clips, plan.output_frames) == (0, 0, 0)


def test_latent_sizes_of_the_paper() -> None:
    plan = ClipPlan()
    assert (plan.latent_frames, plan.latent_size) == (21, (44, 80))
    assert [latent_frames(frames) for frames in (1, 5, 8, 9, 17, 49)] == [1, 2, 2, 3, 5, 13]


class TestResolved:
    def test_an_open_length_becomes_the_controls(self) -> None:
        assert ClipPlan().resolved(161) == ClipPlan(source_frames=161)

    def test_a_given_length_stays(self) -> None:
        assert ClipPlan(source_frames=161).resolved(400).source_frames == 161

    def test_controls_shorter_than_the_plan_are_refused(self) -> None:
        with pytest.raises(ValueError, match="161 source frames, but the control has only 160"):
            ClipPlan(source_frames=161).resolved(160)

    def test_an_open_plan_refuses_controls_shorter_than_a_clip(self) -> None:
        with pytest.raises(ValueError, match="has 80 frames, but one clip needs 81.*'pad'"):
            ClipPlan().resolved(80)
        assert ClipPlan(tail="pad").resolved(80).clips == 1


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"width": 650}, "width 650 is not a multiple of 16: use 640 or 656"),
        ({"height": 0}, "height 0 .* use 16 or 32"),
        ({"height": -16}, "height -16 .* use 16 or 32"),
        ({"frames": 80}, "frames per clip 80 .* use 77 or 81"),
        ({"frames": 1}, "frames per clip 1 .* use 5 or 9"),
        ({"fps": Fraction(0)}, "fps 0 is not positive"),
        ({"overlap": 0}, "overlap 0 is outside 1 .. 80"),
        ({"overlap": 81}, "overlap 81 is outside 1 .. 80"),
        ({"tail": "cut"}, "tail rule 'cut' is not one of drop, pad"),
        ({"source_frames": 80}, "has 80 frames, but one clip needs 81"),
        ({"source_frames": -1}, "source_frames -1 is negative"),
        ({"source_frames": -1, "tail": "pad"}, "source_frames -1 is negative"),
    ],
)
def test_fields_out_of_range_are_refused_with_a_mend(field: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipPlan(**field)


@given(st.integers(-40, 2000), st.integers(-40, 400))
def test_suggested_sizes_and_lengths_are_valid(width: int, frames: int) -> None:
    for field, value in (("width", width), ("frames", frames)):
        try:
            ClipPlan(**{field: value})
        except ValueError as error:
            suggested = [int(word) for word in str(error).rsplit("use ", 1)[1].split(" or ")]
            assert len(suggested) == 2
            for good in suggested:
                ClipPlan(**{field: good})
