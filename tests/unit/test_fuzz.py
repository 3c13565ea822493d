"""What anybody may have written by hand or by accident: each reader takes it or refuses it by name, and writes nowhere else.

An error by name is a ValueError or FileNotFoundError whose text says which file, prompt or name it is about.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from longvie_core.control.clips_folder import load_clips_folder, write_clips_folder
from longvie_core.model.dual_control import DualControlConfig
from longvie_core.model.noise import UnifiedNoise
from longvie_core.plan import ClipPlan
from longvie_core.run.keys import ClipKey
from longvie_core.run.manifest import Manifest
from longvie_core.run.names import check_run_name
from longvie_core.run.prompts import PromptSchedule, parse_prompts
from longvie_core.run.store import Run
from longvie_core.weights.control import control_shapes, read_control
from longvie_core.weights.header import read_header
from longvie_core.weights.overlay import overlay_shapes, read_overlay
from tests.helpers.loops import finished_clip, save_clip

SIZE = 16
PLAN = ClipPlan(width=SIZE, height=SIZE, frames=5, source_frames=13)
KEYS = [ClipKey({"prompt": str(clip)}) for clip in range(3)]

FUZZ = settings(
    max_examples=400,
    derandomize=True,
    deadline=None,
    # Folders are made once a test and tidied by every case itself.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD_TEXT = (
    st.text(max_size=8)
    | st.text(st.characters(), max_size=4)
    | st.sampled_from(["", "\0", "\ud800", "a" * 300, "é" * 200, "../x", "/etc/passwd", "..\\..\\x", "C:\\x", "CON", "1e99"])
)
SCALARS = st.none() | st.booleans() | st.integers() | st.sampled_from([2**63, -(2**64), 10**400]) | st.floats() | ODD_TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ODD_TEXT, inner, max_size=3), max_leaves=6
)


def refused(read: Callable[[], object], *names: str) -> bool:
    """Whether reading was refused, which must be by one of these names; any other error fails the test."""
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        # Not the kinds that come from deeper inside.
        assert not isinstance(error, UnicodeError | json.JSONDecodeError), repr(error)
        assert any(name in str(error) for name in names), str(error)
        return True
    return False


def listing(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """A few bytes of a file replaced, cut out or put in; or its end torn off."""
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        size = data.draw(st.integers(0, 4) | st.just(len(content)))
        content = content[:place] + data.draw(st.binary(max_size=4)) + content[place + size :]
    return content


# ---- run.json


def signed(data: dict) -> str:
    """A manifest with the hash that belongs to its content: one that somebody meant to look right."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return json.dumps({**data, "sha256": hashlib.sha256(text.encode()).hexdigest()})


RATES = st.sampled_from(["16", "30000/1001", "1/0", "-1", "1e999999999", "16.5", "nan", "١٦"]) | JSON


def odd(usual: dict) -> st.SearchStrategy[dict]:
    """An object with any JSON in the place of some of its values."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(usual, JSON)).map(lambda changes: usual | changes)


OLD_ENTRY = {"fingerprint": "f", "parts": {"p": "1"}, "frames": 9, "latents_sha256": "a", "video_sha256": "b", "seconds": 1.0}
OLD_MANIFESTS = st.fixed_dictionaries(
    {"version": st.just(1) | SCALARS},
    optional={
        "fps": RATES,
        "clips": st.lists(odd(OLD_ENTRY) | JSON, max_size=3) | JSON,
        "video": odd({"made_from": "a", "size": 1, "mtime_ns": 2}) | JSON,
        "more": JSON,
    },
)
FILE = {"name": "clip_0001.mp4", "sha256": "a", "size": 1, "mtime_ns": 2}
FILES = st.just(FILE) | odd(FILE) | st.fixed_dictionaries({"name": ODD_TEXT}).map(lambda name: FILE | name)
ENTRY = {
    "clip": 0,
    "fingerprint": "f",
    "parts": {"p": "1"},
    "frames": 9,
    "latents": FILE,
    "video": FILE,
    "seconds": 1.0,
    "start": "",
    "tail": "",
    "created": "",
    "seed": None,
    "prompt": "",
    "pinned": False,
    "former": "",
}
ENTRIES = st.builds(lambda entry, latents, video: entry | {"latents": latents, "video": video}, odd(ENTRY), FILES, FILES)
VIDEOS = st.builds(lambda video, file: video | {"file": file}, odd({"made_from": "a", "takes": ["f"]}), FILES)
NEW_MANIFESTS = st.fixed_dictionaries(
    {"version": st.just(2)},
    optional={
        "fps": RATES,
        "takes": st.lists(ENTRIES | JSON, max_size=3) | JSON,
        "sequence": st.lists(st.just("f"), max_size=2) | JSON,
        "videos": st.lists(VIDEOS | JSON, max_size=2) | JSON,
        "more": JSON,
    },
)
ODD_MANIFESTS = OLD_MANIFESTS | NEW_MANIFESTS


@FUZZ
@given(JSON | ODD_MANIFESTS, st.booleans())
def test_any_json_is_a_manifest_or_refused_by_name(value: object, with_hash: bool) -> None:
    text = signed(value) if with_hash and isinstance(value, dict) else json.dumps(value)
    manifests = []
    if not refused(lambda: manifests.append(Manifest.from_json(text)), "run.json"):
        (manifest,) = manifests
        assert Manifest.from_json(manifest.to_json()) == manifest
        assert all(take.frames > 0 and take.clip >= 0 and math.isfinite(take.seconds) for take in manifest.takes)
        assert len(manifest.clips) == len(manifest.sequence) <= len(manifest.takes)
        files = [file for take in manifest.takes for file in (take.latents, take.video)]
        for file in [*files, *(video.file for video in manifest.videos)]:
            assert PurePosixPath("run", file.name).parts == ("run", file.name)
            assert PureWindowsPath("run", file.name).parts == ("run", file.name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a finished run of three clips."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with Run(folder).locked() as run:
        for clip, key in enumerate(KEYS):
            frames = np.zeros((5, SIZE, SIZE, 3), np.uint8)
            result = finished_clip(PLAN, clip, torch.zeros(1, 16, 2, 2, 2), frames)
            save_clip(run, PLAN, key, result, 1.0, run.manifest.clips)
    return listing(folder)


@pytest.fixture
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of flushes take their time, and nothing here pulls the plug."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """Make a folder hold these files and no others."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()
    for name, content in files.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)


def use(folder: Path) -> None:
    """What the loop does with a run that may be finished."""
    with Run(folder).locked() as run:
        decision = run.decide(KEYS)
        run.adopt(decision)
        kept = [take for take in decision.takes if take is not None]
        run.state()
        run.occupied()
        run.estimate(PLAN, len(decision.pending), kept)
        for take in kept:
            run.carry(take, PLAN)
            run.last_frame(take, PLAN)


@FUZZ
@given(data=st.data())
def test_a_run_with_any_manifests_opens_or_is_refused_and_touches_nothing_else(
    data: st.DataObject, finished: dict[str, bytes], tmp_path: Path, no_flush: None
) -> None:
    folder = tmp_path / "runs" / "run"
    lay_out(folder, finished)
    (tmp_path / "precious").write_bytes(b"precious")
    for name in ("run.json", "run.copy.json"):
        odd = ODD_MANIFESTS.map(lambda value: signed(value).encode()) | st.just(None)
        content = mutated(data, finished[name]) if data.draw(st.booleans()) else data.draw(odd)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
    refused(lambda: use(folder), "run.json", "run.copy.json")
    after = listing(tmp_path)
    assert {name for name in after if not name.startswith("runs/run/")} == {"precious"}
    clips = {name: content for name, content in finished.items() if name.startswith("clip_")}
    assert {name: after[f"runs/run/{name}"] for name in clips} == clips, "finished clips are never touched by opening a run"


@FUZZ
@given(data=st.data())
def test_any_damage_to_a_clip_costs_that_clip_and_no_more(
    data: st.DataObject, finished: dict[str, bytes], tmp_path: Path, no_flush: None
) -> None:
    folder = tmp_path / "run"
    lay_out(folder, finished)
    clip = data.draw(st.integers(0, 2))
    ending = data.draw(st.sampled_from(["mp4", "safetensors"]))
    (name,) = (name for name in finished if name.startswith(f"clip_{clip + 1:04d}") and name.endswith(ending))
    content = mutated(data, finished[name])
    (folder / name).write_bytes(content)
    run = Run(folder)
    take = run.manifest.clips[clip]
    # A video is made again from its latents.
    assert run.decide(KEYS).pending == (() if content == finished[name] or ending == "mp4" else (clip,))
    use(folder)
    # Where its hash is made to fit, what cannot be read is still refused by name.
    if name.endswith("safetensors"):
        refused(lambda: run.carry(take, PLAN), name)
        refused(lambda: run.last_frame(take, PLAN), name)
        refused(lambda: run.latents(take), name)


# ---- cond.json


@pytest.fixture(scope="module")
def clips_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real clips in the authors' layout, and files around them that are none of its business."""
    folder = tmp_path_factory.mktemp("input") / "clips"
    frames = np.zeros((2, 5, SIZE, SIZE, 3), np.uint8)
    write_clips_folder(folder, ["a", "b"], frames, frames, frames[0, 0])
    for name in ("secret.mp4", "secret.png"):
        (folder.parent / name).write_bytes(b"secret")
    (folder / "link.mp4").symlink_to(folder.parent / "secret.mp4")
    (folder / "folder.mp4").mkdir()
    return folder


PATHS = (
    st.sampled_from(
        ["depth_00.mp4", "track_01.mp4", "any/root/depth_01.mp4", "a\\b\\track_00.mp4", "../secret.mp4", "/etc/passwd"]
        + ["link.mp4", "folder.mp4", "first.png", "cond.json", ".", "..", "", "/", "\0.mp4", "\ud800.mp4", "depth_00.mp4/"]
        + ["a" * 300 + ".mp4"]
    )
    | ODD_TEXT
)
COND_ENTRIES = st.fixed_dictionaries({"text": ODD_TEXT, "depth": PATHS, "track": PATHS}, optional={"more": JSON})
GOOD_ENTRIES = st.fixed_dictionaries(
    {
        "text": ODD_TEXT,
        "depth": st.sampled_from(["x/depth_00.mp4", "depth_01.mp4"]),
        "track": st.sampled_from(["\\track_00.mp4", "track_01.mp4"]),
    }
)


@FUZZ
@given(
    content=st.lists(GOOD_ENTRIES, max_size=2).flatmap(
        lambda good: st.lists(COND_ENTRIES, max_size=2).map(lambda odd: json.dumps([*good, *odd]).encode())
    )
    | st.lists(GOOD_ENTRIES | JSON, max_size=3).map(lambda entries: json.dumps(entries).encode())
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.binary(max_size=30)
)
def test_any_cond_json_is_read_or_refused_by_name(content: bytes, clips_folder: Path) -> None:
    (clips_folder / "cond.json").write_bytes(content)
    before = listing(clips_folder.parent)
    found = []
    if not refused(lambda: found.append(load_clips_folder(clips_folder)), "cond.json", str(clips_folder)):
        (clips,) = found
        assert clips.clips == len(clips.prompts) == len(clips.dense.paths) == len(clips.sparse.paths)
        for path in (*clips.dense.paths, *clips.sparse.paths, clips.first_frame):
            assert path.resolve().parent == clips_folder.resolve()
    assert listing(clips_folder.parent) == before


# ---- prompt schedules


ODD_PROMPTS = st.fixed_dictionaries(
    {"prompt": ODD_TEXT | SCALARS},
    optional={
        "negative": ODD_TEXT | SCALARS,
        "seed_offset": st.integers() | SCALARS,
        "dense_strength": st.floats(0, 2) | SCALARS,
        "sparse_strength": st.floats(0, 2) | SCALARS,
        "other": JSON,
    },
)
SCHEDULES = (
    st.lists(ODD_PROMPTS | ODD_TEXT, min_size=1, max_size=3).map(json.dumps)
    | st.lists(JSON, max_size=3).map(json.dumps)
    | st.text(max_size=20)
    | st.text(max_size=20).map("[{}".format)
    | ODD_TEXT
)


def values(item: object) -> Iterator[object]:
    """All values in a dataclass, however deep."""
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        if dataclasses.is_dataclass(value):
            yield from values(value)
        else:
            yield value


@FUZZ
@given(SCHEDULES, st.integers(0, 5))
def test_any_schedule_is_parsed_or_refused_by_name(text: str, clip: int) -> None:
    parsed = []
    if not refused(lambda: parsed.append(parse_prompts(text)), "prompt"):
        (prompts,) = parsed
        chosen = PromptSchedule(prompts).of(clip)
        for value in values(chosen):
            assert value is None or isinstance(value, str | int | float)
            assert not isinstance(value, float) or math.isfinite(value)
            if isinstance(value, str):
                value.encode()  # what the text encoder and the run's manifest do with it
        assert torch.isfinite(UnifiedNoise(1).for_clip(clip, (1, 16, 1, 1, 1), chosen.seed_offset)).all()


# ---- run names


RUN_NAMES = (
    ODD_TEXT
    | st.text(st.sampled_from("./\\ ~:a\0-"), max_size=6)
    | st.sampled_from(["..", "a/../../b", "//x", "\\\\server\\share", "C:", "nul.txt", "COM¹", "a.", " a", "龍" * 80])
)


@FUZZ
@given(name=RUN_NAMES)
def test_any_run_name_is_a_folder_of_its_own_or_refused(name: str, tmp_path: Path) -> None:
    runs = tmp_path / "output" / "longvie"
    runs.mkdir(parents=True, exist_ok=True)
    before = {path for path in tmp_path.rglob("*") if runs not in path.parents}
    if not refused(lambda: check_run_name(name), "run name"):
        with Run(runs / name).locked():
            pass
        assert [path.name for path in runs.iterdir()] == [name]
        assert [path.name for path in (runs / name).iterdir()] == ["run.lock"]
        assert PurePosixPath(name).parts == PureWindowsPath(name).parts == (name,)
        shutil.rmtree(runs / name)
    assert {path for path in tmp_path.rglob("*") if runs not in path.parents} == before
    assert list(runs.iterdir()) == []


# ---- checkpoint headers


CONTROL = control_shapes(DualControlConfig(dim=16, control_dim=8, ffn_dim=8, num_heads=1, num_layers=1, image=False))
OVERLAY = overlay_shapes(1, 8)


def safetensors_bytes(header: object, content: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict, bytes]]:
    """Header and tensors of a good control file and a good overlay."""
    parts = {}
    for name, shapes in (("control", CONTROL), ("overlay", OVERLAY)):
        path = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, path, {"config": '{"head_dim": 8}'})
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        parts[name] = (json.loads(content[8 : 8 + size]), content[8 + size :])
    return parts


NUMBERS = st.integers(-1, 40) | st.sampled_from([2**31, 2**63, 2**64, 10**30]) | st.floats() | st.none()
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "X9", ""]) | JSON,
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.just([0, 0]) | st.lists(NUMBERS, max_size=3) | JSON,
    },
)
CONFIGS = st.sampled_from(['{"head_dim": 8}', "{", "[1]", '{"head_dim": 1e9}']) | JSON.map(json.dumps)
METADATA = st.fixed_dictionaries({}, optional={"config": CONFIGS, "x": JSON})


@FUZZ
@given(data=st.data())
def test_any_checkpoint_header_is_read_or_refused_by_name(
    data: st.DataObject, weights: dict[str, tuple[dict, bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    good, content = weights[data.draw(st.sampled_from(["control", "overlay"]))]
    way = data.draw(st.sampled_from(["bytes", "tensor", "name", "metadata", "header", "length"]))
    header = dict(good)
    key = data.draw(st.sampled_from(sorted(header)))
    if way == "tensor" and key != "__metadata__":
        header[key] = header[key] | data.draw(TENSORS) if data.draw(st.booleans()) else data.draw(JSON)
    if way == "name":
        renamed = data.draw(ODD_TEXT | st.sampled_from(["pipe.dual_controller.", "blocks.0.control_blocks_dense.", "blocks.9"]))
        header[renamed + (key if data.draw(st.booleans()) else "")] = header.pop(key)
    if way == "metadata":
        header["__metadata__"] = data.draw(METADATA | JSON)
    written = safetensors_bytes(data.draw(JSON) if way == "header" else header, content)
    if way == "length":
        written = struct.pack("<Q", data.draw(st.integers(0, 2**64 - 1) | st.integers(0, 4000))) + written[8:]
    if way == "bytes":
        written = mutated(data, written)
    path.write_bytes(written)
    refused(lambda: read_header(path), path.name)
    for layout in (lambda: read_control(path)[1], lambda: read_overlay(path, 1, 8)):
        tensors: list[dict] = []
        if not refused(lambda: tensors.append(dict(layout().tensors())), path.name):  # noqa: B023 (used at once)
            assert 0 < sum(value.nbytes for value in tensors[0].values()) <= len(written)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]
