"""Whether controls fit the plan and each other: the length that comes out, and every way in which they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longvie_core.control.check import check_controls
from longvie_core.control.control import Control
from longvie_core.plan import ClipPlan

PLAN = ClipPlan(width=32, height=32, frames=9)
PADDED = ClipPlan(width=32, height=32, frames=9, tail="pad")


def continuous(modality: str, frames: int) -> Control:
    return Control(modality, True, (Path(f"{modality}.mp4"),), False, frames, 32, 32)


def per_clip(modality: str, clips: int, frames: int = 9) -> Control:
    return Control(modality, True, tuple(Path(f"{modality}_{clip}.mp4") for clip in range(clips)), True, frames, 32, 32)


class TestLength:
    @pytest.mark.parametrize("modality", ["dense", "sparse"])
    def test_of_one_continuous_control(self, modality: str) -> None:
        plan = check_controls(PLAN, **{"dense": None, "sparse": None, modality: continuous(modality, 30)})
        assert (plan.source_frames, plan.clips, plan.output_frames) == (30, 3, 25)

    @pytest.mark.parametrize("modality", ["dense", "sparse"])
    def test_of_one_control_with_a_file_for_each_clip(self, modality: str) -> None:
        plan = check_controls(PLAN, **{"dense": None, "sparse": None, modality: per_clip(modality, 3)})
        assert (plan.source_frames, plan.clips, plan.output_frames) == (25, 3, 25)

    def test_overlap_counts_once(self) -> None:
        plan = ClipPlan(width=32, height=32, frames=9, overlap=4)
        assert check_controls(plan, per_clip("dense", 3), per_clip("sparse", 3)).source_frames == 9 + 5 + 5

    def test_everything_but_the_length_stays(self) -> None:
        plan = ClipPlan(width=48, height=64, frames=17, overlap=2, tail="pad")
        got = check_controls(plan, continuous("dense", 40), None)
        assert got == ClipPlan(width=48, height=64, frames=17, overlap=2, tail="pad", source_frames=40)

    def test_a_length_that_the_plan_gives_stays(self) -> None:
        plan = ClipPlan(width=32, height=32, frames=9, source_frames=17)
        assert check_controls(plan, continuous("dense", 30), continuous("sparse", 30)) == plan
        assert check_controls(plan, per_clip("dense", 4), per_clip("sparse", 4)) == plan

    @pytest.mark.parametrize("swap", [False, True])
    @pytest.mark.parametrize("frames", [25, 28, 32])
    def test_a_continuous_control_knows_the_true_length_beside_a_per_clip_one(self, swap: bool, frames: int) -> None:
        kinds = (per_clip, continuous) if swap else (continuous, per_clip)
        size = {continuous: frames, per_clip: 3}
        plan = check_controls(PLAN, kinds[0]("dense", size[kinds[0]]), kinds[1]("sparse", size[kinds[1]]))
        assert (plan.source_frames, plan.clips) == (frames, 3)

    def test_padding_needs_a_file_for_the_rest_as_well(self) -> None:
        plan = check_controls(PADDED, continuous("dense", 28), per_clip("sparse", 4))
        assert (plan.source_frames, plan.clips, plan.output_frames) == (28, 4, 28)
        with pytest.raises(ValueError, match=r"sparse has 3 clips, but the plan has 4 \(28 source frames\)"):
            check_controls(PADDED, continuous("dense", 28), per_clip("sparse", 3))


class TestRefused:
    def test_no_control(self) -> None:
        with pytest.raises(ValueError, match="no control is connected: connect dense .* sparse .* or both"):
            check_controls(PLAN, None, None)

    @pytest.mark.parametrize(
        ("dense", "sparse", "message"),
        [
            ("sparse", None, "a sparse control is connected to the input 'dense': swap"),
            (None, "dense", "a dense control is connected to the input 'sparse': swap"),
            ("sparse", "dense", "a sparse control is connected to the input 'dense': swap"),
            ("dense", "dense", "a dense control is connected to the input 'sparse': swap"),
        ],
    )
    def test_a_control_in_the_others_place(self, dense: str | None, sparse: str | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_controls(PLAN, dense and continuous(dense, 25), sparse and continuous(sparse, 25))

    @pytest.mark.parametrize(
        ("dense", "sparse", "lengths"),
        [
            (continuous("dense", 25), continuous("sparse", 26), (25, 26)),
            (continuous("dense", 26), continuous("sparse", 25), (26, 25)),
            (per_clip("dense", 2), per_clip("sparse", 3), (17, 25)),
        ],
    )
    def test_lengths_that_do_not_agree(self, dense: Control, sparse: Control, lengths: tuple[int, int]) -> None:
        message = f"dense has {lengths[0]} frames and sparse has {lengths[1]}: both must come from the same video"
        with pytest.raises(ValueError, match=message):
            check_controls(PLAN, dense, sparse)

    @pytest.mark.parametrize("frames", [33, 200])
    def test_too_few_files_for_the_continuous_control(self, frames: int) -> None:
        clips = (frames - 1) // 8
        with pytest.raises(ValueError, match=rf"sparse has 3 clips, but the plan has {clips} \({frames} source frames\)"):
            check_controls(PLAN, continuous("dense", frames), per_clip("sparse", 3))
        with pytest.raises(ValueError, match=rf"dense has 3 clips, but the plan has {clips} \({frames} source frames\)"):
            check_controls(PLAN, per_clip("dense", 3), continuous("sparse", frames))

    def test_controls_shorter_than_a_clip(self) -> None:
        with pytest.raises(ValueError, match="has 8 frames, but one clip needs 9.*'pad'"):
            check_controls(PLAN, continuous("dense", 8), None)
        assert check_controls(PADDED, continuous("dense", 8), None).clips == 1

    def test_controls_shorter_than_the_plan_says(self) -> None:
        plan = ClipPlan(width=32, height=32, frames=9, source_frames=33)
        for control in (continuous("dense", 32), per_clip("dense", 3)):
            with pytest.raises(ValueError, match=r"33 source frames, but the control has only (32|25)"):
                check_controls(plan, control, None)

    def test_files_of_another_clip_length(self) -> None:
        with pytest.raises(ValueError, match="set frames per clip to 13"):
            check_controls(PLAN, per_clip("dense", 3, frames=13), None)


@given(
    st.integers(1, 60),
    st.integers(1, 60) | st.none(),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["drop", "pad"]),
)
def test_every_frame_that_the_plan_asks_for_is_there(
    dense: int, sparse: int | None, overlap: int, dense_clips: bool, sparse_clips: bool, tail: str
) -> None:
    """Whatever passes, the windows of all clips can be read, but for what padding repeats."""
    plan = ClipPlan(width=32, height=32, frames=9, overlap=overlap, tail=tail)
    controls = [(per_clip if dense_clips else continuous)("dense", dense), None]
    if sparse is not None:
        controls[1] = (per_clip if sparse_clips else continuous)("sparse", sparse)
    try:
        plan = check_controls(plan, *controls)
    except ValueError:
        return
    assert plan.clips >= 1
    for control in filter(None, controls):
        if control.per_clip:
            assert len(control.paths) >= plan.clips
        else:
            wanted = [number for clip in range(plan.clips) for number in plan.control_frames(clip)]
            assert max(number for number in wanted if tail == "drop" or number < plan.source_frames) < control.frames
