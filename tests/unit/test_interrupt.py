"""Long work stops where it is asked to, on the thread that is asked, and leaves nothing half-written."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from longvie_core.control.control import Control, frames_sha256
from longvie_core.control.depth.engine import extract_depth
from longvie_core.control.depth.parallax import ParallaxDepth
from longvie_core.control.normalize import write_control
from longvie_core.control.percentiles import global_percentiles
from longvie_core.control.raw_depth import RawDepth, RawDepthWriter
from longvie_core.control.tracks.lucas_kanade import LucasKanade
from longvie_core.control.tracks.write import write_tracks
from longvie_core.disk.fingerprints import BLOCK, file_sha256
from longvie_core.disk.read_ahead import ReadAhead
from longvie_core.interrupt import asking, checkpoint, result_of
from longvie_core.media.concat import concat
from longvie_core.media.footage import Footage
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.media.write import VideoWriter
from longvie_core.plan import ClipPlan

WIDTH, HEIGHT, FRAMES, FPS = 64, 48, 21, Fraction(16)
PLAN = ClipPlan(WIDTH, HEIGHT, FRAMES, FPS)


class Interrupted(BaseException):
    """As the host's: no Exception."""


class After:
    """A question that is answered with a stop when it has been asked so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Interrupted


def film(path: Path) -> Path:
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8)
    picture = np.kron(texture, np.ones((4, 4, 1), np.uint8))
    with VideoWriter(path, WIDTH, HEIGHT, FPS) as writer:
        for number in range(FRAMES):
            writer.write(np.roll(picture, number, axis=1))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("film") / "drive.mp4")


@pytest.fixture(scope="module")
def raw_depth(tmp_path_factory: pytest.TempPathFactory) -> RawDepth:
    path = tmp_path_factory.mktemp("depth") / "depth.npy"
    with RawDepthWriter(path, "disparity", FPS) as writer:
        for number in range(FRAMES):
            writer.write(np.linspace(1, 2 + number, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH))
    return writer.raw_depth()


@pytest.fixture(scope="module")
def dense(raw_depth: RawDepth, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return write_control(raw_depth, PLAN, tmp_path_factory.mktemp("dense") / "dense.mkv")


@pytest.fixture(scope="module")
def stages(video: Path, raw_depth: RawDepth, dense: Control) -> dict[str, Callable[[Path], object]]:
    """Long work by name; each takes an empty folder to write into."""
    plan = PLAN.resolved(FRAMES)
    big = video.with_name("big")
    big.write_bytes(b"0" * (4 * BLOCK))

    def footage() -> Footage:
        return Footage.open(video, FPS, WIDTH, HEIGHT)

    return {
        "hashing": lambda folder: file_sha256(big),
        "reading": lambda folder: list(read_frames(video, range(FRAMES))),
        "writing": lambda folder: film(folder / "again.mp4"),
        "percentiles": lambda folder: global_percentiles(lambda: raw_depth.disparity(range(FRAMES))),
        "normalising": lambda folder: write_control(raw_depth, plan, folder / "dense.mkv"),
        "depth": lambda folder: extract_depth(footage(), ParallaxDepth(), folder / "depth.npy"),
        "tracks": lambda folder: write_tracks(footage(), dense, plan, LucasKanade(), folder, grid=4),
        "digest of a control": lambda folder: Control.from_video(dense.paths[0], "dense").digest(plan, 0),
        "joining": lambda folder: concat([video] * 3, folder / "joined.mp4", fps=FPS),
    }


NAMES = (
    "hashing",
    "reading",
    "writing",
    "percentiles",
    "normalising",
    "depth",
    "tracks",
    "digest of a control",
    "joining",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_long_work_stops_in_the_middle_and_leaves_nothing(
    stages: dict[str, Callable[[Path], object]], name: str, share: float, tmp_path: Path
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    asked = questions(stages[name], whole)
    assert asked >= 4, "it is asked too seldom to be stopped"
    frames_sha256.cache_clear()
    stopped.mkdir()
    with pytest.raises(Interrupted), asking(After(int(asked * share))):
        stages[name](stopped)
    # Only the tracks of a clip stay, when they are whole: the work goes on after them.
    for path in stopped.iterdir():
        assert name == "tracks" and path.read_bytes() == (whole / path.name).read_bytes()


def questions(work: Callable[[Path], object], folder: Path) -> int:
    """How often work asks whether to go on, with nothing remembered."""
    folder.mkdir()
    frames_sha256.cache_clear()
    counter = After(10**9)
    with asking(counter):
        work(folder)
    return 10**9 - counter.left


def test_each_frame_of_a_file_is_a_chance_to_stop(video: Path) -> None:
    probe(video)
    counter = After(10**9)
    with asking(counter):
        assert len(list(read_frames(video, range(FRAMES)))) == FRAMES
    assert 10**9 - counter.left >= FRAMES


def test_without_a_question_nothing_stops() -> None:
    checkpoint()


def test_the_question_before_comes_back() -> None:
    outer, inner = After(5), After(0)
    with asking(outer):
        with pytest.raises(Interrupted), asking(inner):
            checkpoint()
        checkpoint()
    checkpoint()
    assert outer.left == 4


def test_other_threads_are_not_asked() -> None:
    with asking(After(0)), ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: [checkpoint(), "done"][1]).result() == "done"


def test_waiting_for_another_thread_can_be_interrupted() -> None:
    future: Future[int] = Future()
    with pytest.raises(Interrupted), asking(After(2)):
        result_of(future)


def test_a_result_that_comes_and_an_error_that_comes() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert result_of(pool.submit(lambda: 3)) == 3

        def fail() -> None:
            raise TimeoutError("of the work itself")

        with pytest.raises(TimeoutError, match="of the work itself"):
            result_of(pool.submit(fail))


def test_what_reads_ahead_ends_after_the_item_that_it_is_reading() -> None:
    read, go = [], threading.Event()

    def endless() -> Iterator[int]:
        while True:
            go.wait(5)
            read.append(len(read))
            yield read[-1]

    reader = ReadAhead()
    future = reader.read(endless)
    with pytest.raises(Interrupted), asking(After(1)):
        result_of(future)
    go.set()
    reader.stop()
    count = len(read)
    assert future.done() and count == len(read)
