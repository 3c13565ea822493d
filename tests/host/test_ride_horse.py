"""The authors' example ride_horse: its depth as raw floats, normalized and cut into clips, byte by byte by the golden rule.

The example's own depth videos give the depth: ten clips of 81 frames that share one frame with their neighbours.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from longvie_core.control.clips_folder import load_clips_folder
from longvie_core.control.control import Control
from longvie_core.control.normalize import write_control
from longvie_core.control.raw_depth import RawDepth, RawDepthWriter
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from tests.helpers.places import SHARED

EXAMPLE = SHARED / "examples" / "ride_horse"
CLIPS, FRAMES, STRIDE = 10, 81, 80
SMALLER = 8
"""Every eighth row and column: the rule looks at no neighbours, and all pixels of 801 frames are more than a gigabyte."""

pytestmark = pytest.mark.skipif(
    not (EXAMPLE / "cond.json").is_file(), reason="the authors' example ride_horse is not beside this checkout"
)


@pytest.fixture(scope="module")
def disparity() -> np.ndarray:
    """Raw depth of the example, larger = nearer: float32 [801, h, w]; neither 8-bit nor in 0 .. 1."""
    clips = load_clips_folder(EXAMPLE).dense.paths
    assert len(clips) == CLIPS
    grey = []
    for clip, path in enumerate(clips):
        frames = [frame[::SMALLER, ::SMALLER, 0] for frame in read_frames(path, range(FRAMES))]
        assert len(frames) == FRAMES
        grey += frames[1:] if clip else frames
    values = 1 - np.stack(grey).astype(np.float32) / 255
    # A monotonous curve and a little noise: as uneven as a network's output.
    noise = np.random.default_rng(0).normal(scale=1e-3, size=values.shape).astype(np.float32)
    return (0.7 + 11.3 * (values + noise) ** 2).astype(np.float32)


@pytest.fixture(scope="module")
def raw_depth(disparity: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> RawDepth:
    with RawDepthWriter(tmp_path_factory.mktemp("ride_horse") / "depth.npy", "disparity", Fraction(16)) as writer:
        for frame in disparity:
            writer.write(frame)
    return writer.raw_depth()


@pytest.fixture(scope="module")
def plan(disparity: np.ndarray) -> ClipPlan:
    return ClipPlan(source_frames=len(disparity))


@pytest.fixture(scope="module")
def dense(raw_depth: RawDepth, plan: ClipPlan) -> Control:
    return write_control(raw_depth, plan, raw_depth.path.with_name("dense.mkv"))


def chunk(dense: Control, plan: ClipPlan, clip: int) -> np.ndarray:
    """A clip as it lies on disk: uint8 [81, h, w, 3]."""
    return np.stack(list(read_frames(dense.paths[0], plan.control_frames(clip))))


def test_chunks_are_those_of_the_golden_rule(disparity: np.ndarray, dense: Control, plan: ClipPlan) -> None:
    """As the released code has it: one pair of percentiles over all frames, clip, (p95 - d)/(p95 - p5), *255 truncated."""
    cut = disparity[: 1 + STRIDE * ((len(disparity) - 1) // STRIDE)]
    low, high = np.percentile(cut, [5, 95])
    golden = (high - np.clip(cut, low, high)) / (high - low)
    assert golden.dtype == np.float64 and len(cut) == 801 and plan.clips == CLIPS
    for clip in range(CLIPS):
        expected = (golden[STRIDE * clip : STRIDE * clip + FRAMES] * 255).astype(np.uint8)
        np.testing.assert_array_equal(chunk(dense, plan, clip), np.repeat(expected[..., None], 3, axis=-1))


def test_clips_share_their_frames_exactly(dense: Control, plan: ClipPlan) -> None:
    chunks = [chunk(dense, plan, clip) for clip in range(CLIPS)]
    for before, after in zip(chunks, chunks[1:], strict=False):
        np.testing.assert_array_equal(before[-1], after[0])
        assert (before[-2] != after[0]).any()  # the picture moves: another frame would not be equal


def test_the_loop_is_given_shared_frames_that_are_equal(dense: Control, plan: ClipPlan) -> None:
    """What the nodes read, at the clips' size."""
    windows = [list(dense.window(plan, clip)) for clip in range(2)]
    assert windows[0][0].shape == (plan.height, plan.width, 3)
    np.testing.assert_array_equal(windows[0][-1], windows[1][0])
