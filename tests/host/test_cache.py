"""The cache keeps its word in the running host: what is damaged is made again, and it does not grow with what was used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from devtools.host import Host
from longvie_core.media.write import VideoWriter
from longvie_core.world.render import render_frames
from longvie_core.world.scene import make_scene
from tests.helpers.workflow import (
    FRAMES,
    HEIGHT,
    WIDTH,
    Prompt,
    RunFolder,
    add,
    assert_same_clip,
    failure,
    node_id,
    pictures,
    preview,
    rendered_clips,
    run,
    set_inputs,
    tiny_workflow,
)

CLIPS, LENGTH = 2, 2 * FRAMES - 1
KINDS = ("images", "depth", "dense", "tracks", "sound", "latents", "embeddings")


def film(folder: Path) -> str:
    """A rendered scene as a video in a host's input folder; returns its name."""
    with VideoWriter(folder / "film.mkv", WIDTH, HEIGHT, Fraction(16), codec="lossless") as writer:
        for frame in render_frames(make_scene(4), LENGTH, Fraction(8), WIDTH, HEIGHT):
            writer.write(frame.rgb)
    return "film.mkv"


def driven(prompt: Prompt, video: str, low: float = 5.0) -> tuple[list, list, list]:
    """A video as images -> plan, dense and sparse control, all of them derived."""
    size = {"width": WIDTH, "height": HEIGHT, "frames_per_clip": FRAMES, "fps": 16.0}
    plan = add(prompt, "plan", "LongVieClipPlan", **size, overlap=1, tail="drop", source_frames=0)
    add(prompt, "video", "LoadVideo", file=video)
    images = add(prompt, "images", "GetVideoComponents", video=["video", 0])
    engine = {"engine": "parallax (no weights)", "fit": "stretch"}
    depth = add(prompt, "depth", "LongVieDepthControl", plan=plan, images=images, **engine)
    percentiles = {"low_percentile": low, "high_percentile": 95.0}
    dense = add(prompt, "dense", "LongVieGlobalNormalize", signal=depth, plan=plan, **percentiles)
    settings = {"engine": "Lucas-Kanade", "grid": 8, "style": "reference", "fit": "stretch"}
    sparse = add(prompt, "sparse", "LongVieTrackControl", plan=plan, dense=dense, images=images, **settings)
    return plan, dense, sparse


def workflow(run_name: str) -> Prompt:
    """Everything that is kept between two queues, in one run of two clips."""
    prompt = tiny_workflow(run_name, Sigmas={"steps": 2})
    plan, dense, sparse = driven(prompt, "film.mkv")
    sound = add(prompt, "sound", "EmptyAudio", duration=1.0, sample_rate=16000, channels=1)
    set_inputs(prompt, "LongVieClipLoop", plan=plan, dense=dense, sparse=sparse, audio=sound)
    encoder = add(prompt, "encoder", "TestTextEncoder", log="cache.txt")
    set_inputs(prompt, "LongViePromptSchedule", clip=encoder, prompts="a fox", negative="blurry")
    preview(prompt, sparse, plan, 2)
    return prompt


def cache_of(host: Host) -> Path:
    return host.base / "user" / "longvie" / "controls"


def entries(host: Host, folder: RunFolder, kind: str) -> list[Path]:
    """The files that are kept of a kind."""
    if kind == "embeddings":
        return sorted((folder.path / "prompts").glob("*.safetensors"))
    files = [*cache_of(host).glob(f"{kind}_*"), *cache_of(host).glob(f"{kind}_*/*")]
    return sorted(file for file in files if file.suffix not in ("", ".seal"))


@dataclass(frozen=True)
class Kept:
    """A run that derived all it needs, and what it kept."""

    host: Host
    folder: RunFolder
    files: dict[str, dict[Path, bytes]]
    shown: np.ndarray

    def assert_as_before(self, folder: RunFolder, result) -> None:
        for clip in range(1, CLIPS + 1):
            assert_same_clip(folder, self.folder, clip)
        np.testing.assert_array_equal(pictures(self.host, result, "preview"), self.shown)


@pytest.fixture(scope="module")
def kept(new_host: Callable[..., Host], stock: Callable[[Host], Host], tmp_path_factory: pytest.TempPathFactory):
    with stock(new_host(tmp_path_factory.mktemp("kept"))) as host:
        film(host.base / "input")
        result = run(host, workflow("kept"))
        folder = RunFolder.of(host, "kept")
        files = {kind: {file: file.read_bytes() for file in entries(host, folder, kind)} for kind in KINDS}
        assert all(files.values()), "the test knows nothing of a kind"
        yield Kept(host, folder.copy("as it was"), files, pictures(host, result, "preview"))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size * 2 // 3),
    "lost": lambda path: path.unlink(),
    "one byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_entry_is_made_again_to_the_same_bytes(kept: Kept, kind: str) -> None:
    prompt = workflow("kept")
    for damage in DAMAGES.values():
        folder = RunFolder.of(kept.host, "kept")
        for file in folder.path.glob("clip_*"):
            file.unlink()
        for file in kept.files[kind]:
            damage(file)
        result = run(kept.host, prompt)
        assert rendered_clips(prompt, result) == CLIPS
        kept.assert_as_before(folder, result)
        assert {file: file.read_bytes() for file in kept.files[kind]} == kept.files[kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "embeddings"])
def test_a_link_that_leads_out_of_the_cache_is_not_followed(kept: Kept, kind: str, tmp_path: Path) -> None:
    folder = RunFolder.of(kept.host, "kept")
    for file in folder.path.glob("clip_*"):
        file.unlink()
    outside = []
    for number, file in enumerate(kept.files[kind]):
        outside.append(Path(shutil.move(file, tmp_path / f"{number}{file.suffix}")))
        file.symlink_to(outside[-1])
    before = [file.read_bytes() for file in outside]
    result = run(kept.host, workflow("kept"))
    kept.assert_as_before(folder, result)
    assert not any(file.is_symlink() for file in kept.files[kind])
    assert [file.read_bytes() for file in outside] == before


def test_another_entrys_file_is_not_believed(kept: Kept) -> None:
    # Both of them whole, each with a seal that fits it.
    run(kept.host, look(low=30.0))
    dense = entries(kept.host, kept.folder, "dense")
    (mine,) = kept.files["dense"]
    (foreign,) = [file for file in dense if file != mine]
    for ending in ("", ".seal"):
        shutil.copy2(f"{foreign}{ending}", f"{mine}{ending}")
    result = run(kept.host, workflow("kept"))
    np.testing.assert_array_equal(pictures(kept.host, result, "preview"), kept.shown)
    assert mine.read_bytes() == kept.files["dense"][mine]


def look(low: float) -> Prompt:
    """The controls of the film at another percentile, looked at."""
    prompt: Prompt = {}
    plan, dense, _ = driven(prompt, "film.mkv", low)
    preview(prompt, dense, plan, 1)
    return prompt


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_limit_holds_in_a_host_that_lives_long(make_host: Callable[..., Host]) -> None:
    # Room for nothing but what a prompt uses.
    host = make_host(env={"LONGVIE_CACHE_GIB": "0"})
    film(host.base / "input")
    first = run(host, look(0.0))
    alone = size_of(cache_of(host))
    for low in (1.0, 2.0, 3.0, 4.0):
        run(host, look(low))
        assert len(list(cache_of(host).glob("dense_*.mkv"))) == 1
        assert size_of(cache_of(host)) <= 1.2 * alone
    # The host has the first answer in its own cache, but what it stands for is gone.
    again = run(host, look(0.0))
    np.testing.assert_array_equal(pictures(host, again, "preview"), pictures(host, first, "preview"))


@pytest.mark.parametrize("text", ["plenty", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused_by_name(make_host: Callable[..., Host], stock: Callable, text: str) -> None:
    host = stock(make_host(env={"LONGVIE_CACHE_GIB": text}))
    film(host.base / "input")
    for node, prompt in (("LongVieDepthControl", look(5.0)), ("LongVieClipLoop", tiny_workflow("no limit"))):
        failing, words = failure(host, prompt)
        assert failing == node and "LONGVIE_CACHE_GIB" in words and repr(text) in words and "number of GiB" in words


# ---- what Sample Clip leaves for the next clip


def sampled(clips: int, seed: int = 0) -> Prompt:
    """So many clips, each from the state of the one before."""
    prompt = tiny_workflow("unused", Sigmas={"steps": 1})
    loop = prompt.pop(node_id(prompt, "LongVieClipLoop"))["inputs"]
    del prompt["report"]
    set_inputs(prompt, "LongVieUnifiedNoise", seed=seed)
    given = {name: loop[name] for name in ("sampler", "plan", "prompts", "noise", "first_frame", "dense", "sparse")}
    state = None
    for number in range(1, clips + 1):
        clip = add(prompt, f"clip {number}", "LongVieSampleClip", **given, **({} if state is None else {"state": state}))
        add(prompt, f"images {number}", "SaveImage", images=[clip[0], 1], filename_prefix=f"clip{number}")
        state = [clip[0], 0]
    return prompt


def tails(host: Host) -> list[Path]:
    return sorted((host.base / "temp" / "longvie").glob("tail_*"))


def test_tails_of_sample_clip_do_not_pile_up(make_host: Callable[..., Host], stock: Callable[[Host], Host]) -> None:
    host = stock(make_host())
    first = pictures(host, run(host, sampled(1)), "images 1")
    for seed in range(1, 24):
        run(host, sampled(1, seed))
    assert len(tails(host)) <= 17
    # The host still has the first clip's state in its cache; its tail is gone and has to be made again.
    result = run(host, sampled(2))
    np.testing.assert_array_equal(pictures(host, result, "images 1"), first)
    second = pictures(host, result, "images 2")
    for tail in tails(host):
        tail.unlink() if tail.stat().st_ino % 2 else os.truncate(tail, 100)
    np.testing.assert_array_equal(pictures(host, run(host, sampled(3)), "images 2"), second)
