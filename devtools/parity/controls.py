"""Depth normalisation and drawn tracks against the reference, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from devtools.parity.rows import EXACT, Row, difference, read_json
from longvie_core.control.normalize import normalize, to_uint8
from longvie_core.control.percentiles import global_percentiles
from longvie_core.control.tracks.draw import render_tracks
from longvie_core.control.tracks.point_depth import cover_resize, depth_to_z
from longvie_core.plan import ClipPlan


def depth_rows(golden: Path) -> Iterator[Row]:
    """Global percentile normalisation and the 8-bit chunks, byte for byte."""
    config = read_json(golden / "depth_track.json")
    with np.load(golden / "depth_track.npz") as arrays:
        for frames, case in config["cases"].items():
            plan = ClipPlan(width=16, height=16, source_frames=case["frames_in"], tail="pad")
            whole = (int(frames) - 1) // plan.stride
            cut = arrays[f"depth{frames}.in"][: plan.stitched_frames(whole) or 1]
            low, high = global_percentiles(lambda cut=cut: iter(cut))
            ours = normalize(cut, low, high)
            yield Row(f"depth {frames} frames p5", abs(low - case["p5"]), EXACT)
            yield Row(f"depth {frames} frames p95", abs(high - case["p95"]), EXACT)
            yield Row(f"depth {frames} frames normalised", difference(ours, arrays[f"depth{frames}.out"]), EXACT)
            for chunk in range(case["n_chunks"]):
                window = to_uint8(ours[plan.stride * chunk : plan.stride * chunk + plan.frames])
                theirs = arrays[f"depth{frames}.chunk{chunk}_u8"]
                yield Row(f"depth {frames} frames chunk {chunk} bytes", difference(window, theirs), EXACT)


def track_rows(golden: Path) -> Iterator[Row]:
    """The tracks' z and their drawn frames, byte for byte."""
    height, width = read_json(golden / "depth_track.json")["track_target_hw"]
    with np.load(golden / "depth_track.npz") as arrays:
        for case in ("track_depth", "track_depth_rgbdiff"):
            ours = depth_to_z(arrays[f"{case}.in_u8"], (width, height))
            yield Row(f"tracks {case}", difference(ours, arrays[f"{case}.out"][:, 0]), 1e-6)
        pixels = arrays["track_video.in_u8"].astype(np.float32).transpose(0, 3, 1, 2)
        ours = cover_resize(pixels, (width, height))
        yield Row("tracks track_video", difference(ours, arrays["track_video.out"][0]), 1e-4)
        for case, frames in (("vis", "frames_u8"), ("vis", "frames_all_visible_u8"), ("vis_z0", "frames_u8")):
            theirs = arrays[f"{case}.{frames}"]
            drawn = np.stack(list(render_tracks(arrays[f"{case}.tracks"], None, theirs.shape[2], theirs.shape[1])))
            yield Row(f"tracks drawn {case} {frames}", difference(drawn, theirs), EXACT)
