"""Joining a run again without rendering, and the sound under a video, on the real host."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from devtools.host import Host, RunResult
from tests.helpers.workflow import (
    CLIPS,
    FRAMES,
    Prompt,
    RunFolder,
    add,
    clips_on_disk,
    decode,
    rendered_clips,
    report,
    run,
    set_inputs,
    stitched,
    tiny_workflow,
    view,
)

FPS, RATE, FILM_SECONDS = 16, 16000, 4
EVERY_CLIP = range(1, CLIPS + 1)
VIDEO_SECONDS = stitched(CLIPS) / FPS
NAME = "assembled ü"


@pytest.fixture(scope="module")
def rendered(tiny_host: Host) -> RunFolder:
    """A finished run whose loop was given no sound."""
    run(tiny_host, tiny_workflow(NAME))
    return RunFolder.of(tiny_host, NAME)


@pytest.fixture
def finished(rendered: RunFolder, request: pytest.FixtureRequest) -> RunFolder:
    """A copy of it, named after the test."""
    return rendered.copy(request.node.name)


def beeps(seconds: float) -> np.ndarray:
    """Sound [n] whose pitch tells the half second that it is heard in: 400 Hz in the first, 600 in the second, ..."""
    number = np.arange(int(seconds * RATE))
    pitch = 400 + 200 * (number // (RATE // 2))
    return (0.3 * np.sin(2 * np.pi * pitch * number / RATE)).astype(np.float32)


def film(path: Path, sound: bool = True) -> Path:
    """A video of four seconds with beeps, by other means than the pack's."""
    with av.open(str(path), "w") as output:
        pictures = output.add_stream("libx264", rate=FPS)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        stream = output.add_stream("aac", rate=RATE, layout="mono") if sound else None
        for number in range(FILM_SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 3 * number, np.uint8), format="rgb24")
            output.mux(pictures.encode(frame))
        output.mux(pictures.encode(None))
        if stream is not None:
            frame = av.AudioFrame.from_ndarray(beeps(FILM_SECONDS)[None], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def films(tiny_host: Host) -> dict[str, str]:
    """Names of videos in the input folder: with sound, and silent."""
    folder = tiny_host.base / "input"
    return {name: film(folder / f"{name}.mp4", name == "loud").name for name in ("loud", "mute")}


def halves(path: Path, seconds: float = VIDEO_SECONDS) -> list[int | None]:
    """For each whole half second of a video, which half second of the beeps is heard in it; ``None`` = silence."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return []
        frames = list(container.decode(audio=0))
    assert frames[0].sample_rate == RATE
    start = round(float(frames[0].pts * frames[0].time_base) * RATE)
    samples = np.concatenate([np.zeros(max(start, 0)), *(frame.to_ndarray()[0] for frame in frames)])[max(-start, 0) :]
    heard: list[int | None] = []
    for place in range(int(seconds * 2)):
        # The middle of the half second: the codec smears its ends.
        part = samples[place * RATE // 2 + RATE // 8 : place * RATE // 2 + 3 * RATE // 8]
        if not len(part) or np.abs(part).max() < 0.05:
            heard.append(None)
            continue
        pitch = np.abs(np.fft.rfft(part, 4 * RATE)).argmax() / 4
        assert min(pitch % 200, 200 - pitch % 200) < 20, pitch
        heard.append(round((pitch - 400) / 200))
    return heard


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]


def assemble(run_name: str, **inputs: object) -> Prompt:
    """A prompt that assembles a run and shows the report."""
    prompt: Prompt = {"assemble": {"class_type": "LongVieAssemble", "inputs": {"run_name": run_name, **inputs}}}
    add(prompt, "report", "PreviewAny", source=["assemble", 1])
    return prompt


def words(result: RunResult) -> str:
    return result.outputs["report"]["text"][0]


# ---- joining


def test_a_lost_video_is_joined_again_without_rendering(tiny_host: Host, rendered: RunFolder, finished: RunFolder) -> None:
    before = finished.state(*EVERY_CLIP)
    finished.video.unlink()
    result = run(tiny_host, assemble(finished.path.name))
    np.testing.assert_array_equal(decode(finished.video), decode(rendered.video))
    assert finished.state(*EVERY_CLIP) == before and not result.messages("progress")
    assert f"{CLIPS} clips, {stitched(CLIPS)} frames in {finished.video.name}" in words(result)
    (saved,) = result.outputs["assemble"]["images"]
    assert view(tiny_host, saved) == ("video/mp4", finished.video.read_bytes())


def test_the_finished_clips_of_a_run_that_was_stopped_are_joined(tiny_host: Host) -> None:
    run(tiny_host, tiny_workflow("stopped", ClipLoop={"clips": "1-2"}, Sigmas={"steps": 1}))
    folder = RunFolder.of(tiny_host, "stopped")
    folder.video.write_bytes(folder.video.read_bytes()[:500])  # as if the power had gone while it was copied
    run(tiny_host, assemble("stopped"))
    assert len(decode(folder.video)) == stitched(2)


def test_metadata_is_what_the_host_stores(tiny_host: Host, finished: RunFolder) -> None:
    finished.video.unlink()
    prompt = assemble(finished.path.name)
    run(tiny_host, prompt)
    with av.open(str(finished.video)) as container:
        assert json.loads(container.metadata["prompt"]) == prompt


def test_a_second_time_nothing_is_written(tiny_host: Host, finished: RunFolder) -> None:
    run(tiny_host, assemble(finished.path.name))
    written = finished.video.stat().st_mtime_ns
    run(tiny_host, assemble(finished.path.name))
    assert finished.video.stat().st_mtime_ns == written
    # Not even while the host's cache knows the prompt may a changed run go unnoticed.
    run(tiny_host, assemble(finished.path.name))
    finished.video.unlink()
    run(tiny_host, assemble(finished.path.name))
    assert len(decode(finished.video)) == stitched(CLIPS)


def test_a_damaged_clip_is_left_out_and_named(tiny_host: Host, finished: RunFolder) -> None:
    clip = finished.clip_files(3)[0]
    clip.write_bytes(clip.read_bytes()[:-100])
    text = words(run(tiny_host, assemble(finished.path.name)))
    assert f"clips 3 .. 3 are left out: {clip.name} was changed or cut off" in text and "2 clips" in text
    assert len(decode(finished.video)) == stitched(2)


def test_what_cannot_be_assembled_is_refused_by_name(tiny_host: Host, finished: RunFolder) -> None:
    clip = finished.clip_files(1)[0]
    clip.unlink()
    before = clips_on_disk(tiny_host)
    for name, text in (
        ("never rendered", "there is no run 'never rendered'"),
        (finished.path.name, f"{clip.name} is missing"),
    ):
        result = tiny_host.run(assemble(name), timeout=60)
        assert result.status == "error" and result.error.exception_type.endswith("ValueError")
        assert text in result.error.exception_message
    assert not RunFolder.of(tiny_host, "never rendered").path.exists()
    assert clips_on_disk(tiny_host) == before


# ---- sound


def test_the_driving_videos_sound_is_copied(tiny_host: Host, finished: RunFolder, films: dict[str, str]) -> None:
    prompt = assemble(finished.path.name, driving_video=["film", 0])
    add(prompt, "film", "LoadVideo", file=films["loud"])
    assert "sound from the driving video" in words(run(tiny_host, prompt))
    assert halves(finished.video) == [0, 1, 2]
    with av.open(str(finished.video)) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) <= VIDEO_SECONDS + 0.001
    packets = sound_packets(finished.video)
    assert packets == sound_packets(tiny_host.base / "input" / films["loud"])[: len(packets)]
    assert len(decode(finished.video)) == stitched(CLIPS)


@pytest.mark.parametrize(
    ("start", "duration", "heard"),
    [(1.0, 2.0, [2, 3, 4]), (1.0, 1.0, [2, 3, None]), (2.5, 0.0, [5, 6, 7]), (-1.0, 0.0, [6, 7, None])],
)
def test_of_a_trimmed_video_the_trimmed_parts_sound_is_kept(
    tiny_host: Host, finished: RunFolder, films: dict[str, str], start: float, duration: float, heard: list[int | None]
) -> None:
    prompt = assemble(finished.path.name, driving_video=["trimmed", 0])
    add(prompt, "film", "LoadVideo", file=films["loud"])
    add(
        prompt, "trimmed", "Video Slice",
        video=["film", 0], start_time=start, duration=duration, strict_duration=False,
    )  # fmt: skip
    run(tiny_host, prompt)
    assert halves(finished.video) == heard


def test_audio_comes_before_the_driving_videos_sound(tiny_host: Host, finished: RunFolder, films: dict[str, str]) -> None:
    prompt = assemble(finished.path.name, driving_video=["film", 0], audio=["audio", 0])
    add(prompt, "film", "LoadVideo", file=films["mute"])
    add(prompt, "audio", "LoadAudio", audio=films["loud"])
    assert "sound from audio" in words(run(tiny_host, prompt))
    assert halves(finished.video) == [0, 1, 2]


def test_a_video_from_memory_brings_its_sound(tiny_host: Host, finished: RunFolder, films: dict[str, str]) -> None:
    prompt = assemble(finished.path.name, driving_video=["made", 0])
    add(prompt, "audio", "LoadAudio", audio=films["loud"])
    add(prompt, "images", "EmptyImage", width=32, height=32, batch_size=32, color=0)
    add(prompt, "made", "CreateVideo", images=["images", 0], fps=float(FPS), audio=["audio", 0])
    run(tiny_host, prompt)
    assert halves(finished.video) == [0, 1, 2]


@pytest.mark.parametrize("trimmed", [False, True])
def test_a_silent_driving_video_is_no_error(tiny_host: Host, finished: RunFolder, films: dict[str, str], trimmed: bool) -> None:
    prompt = assemble(finished.path.name, driving_video=["trimmed" if trimmed else "film", 0])
    add(prompt, "film", "LoadVideo", file=films["mute"])
    if trimmed:
        cut = {"start_time": 1.0, "duration": 1.0, "strict_duration": False}
        add(prompt, "trimmed", "Video Slice", video=["film", 0], **cut)
    text = words(run(tiny_host, prompt))
    assert "the driving video has no sound: the video is silent" in text
    assert halves(finished.video_of(text)) == []


def test_the_loop_keeps_the_sound_and_renders_nothing_for_another(
    tiny_host: Host, finished: RunFolder, films: dict[str, str]
) -> None:
    prompt = tiny_workflow(finished.path.name)
    set_inputs(prompt, "LongVieClipLoop", driving_video=add(prompt, "film", "LoadVideo", file=films["loud"]))
    result = run(tiny_host, prompt)
    assert rendered_clips(prompt, result) == 0 and "sound from the driving video" in report(result)
    assert halves(finished.video) == [0, 1, 2]
    prompt["film"]["inputs"]["file"] = films["mute"]
    result = run(tiny_host, prompt)
    assert rendered_clips(prompt, result) == 0 and "no sound" in report(result)
    silent = finished.video_of(report(result))
    assert halves(silent) == [] and len(decode(silent)) == stitched(CLIPS)
    assert halves(finished.video) == [0, 1, 2], "the one with sound is still there"
    set_inputs(prompt, "LongVieClipLoop", clips="1", driving_video=add(prompt, "film", "LoadVideo", file=films["loud"]))
    run(tiny_host, prompt)
    assert halves(finished.video, FRAMES / FPS) == [0]
