"""The contact sheet: a row each for scene, depth, tracks and video, a column for the middle frame of each clip."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from devtools import contact_sheet
from longvie_core.media.write import VideoWriter
from longvie_core.world.render import render
from longvie_core.world.scene import make_scene

WIDTH, HEIGHT, CLIPS, SEED = 96, 64, 2, 10_005
MIDDLES = (8, 24)


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """33 grey frames, each as bright as its number."""
    path = tmp_path / "made.mkv"
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for number in range(33):
            writer.write(np.full((HEIGHT, WIDTH, 3), number, np.uint8))
    return path


def test_rows_and_columns(video: Path) -> None:
    truth, depth, tracks, made = contact_sheet.rows([video], SEED)
    assert {row.shape for row in (truth, depth, tracks, made)} == {(CLIPS, HEIGHT, WIDTH, 3)}
    for column, frame in enumerate(MIDDLES):
        seen = render(make_scene(SEED), frame * 3 / 16, WIDTH, HEIGHT)
        np.testing.assert_array_equal(truth[column], seen.rgb)
        assert (made[column] == frame).all()
        near, far = seen.disparity > np.quantile(seen.disparity, 0.9), seen.disparity < np.quantile(seen.disparity, 0.1)
        assert depth[column][near].mean() < depth[column][far].mean() - 30  # near is black
        assert np.ptp(tracks[column].astype(int), axis=-1).max() > 100  # coloured


def test_the_picture_is_an_enlarged_jpeg(video: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    assert contact_sheet.main([str(video), str(video), str(out), "--scene", str(SEED)]) == 0
    with Image.open(out) as picture:
        assert (picture.format, picture.size) == ("JPEG", (2 * CLIPS * WIDTH, 2 * 5 * HEIGHT))


def test_a_video_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "short.mkv"
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for _ in range(20):
            writer.write(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    with pytest.raises(SystemExit):
        contact_sheet.main([str(path), str(tmp_path / "sheet.jpg")])
    assert "short.mkv has 20 frames of 96x64 instead of 17 of 96x64" in capsys.readouterr().err
