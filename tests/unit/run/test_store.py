"""A run on disk: what is kept, what is rendered again and why, and what a crash, an edit or another version does to it."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path, PureWindowsPath

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from longvie_core.disk.atomic import temporary_name, write_atomically
from longvie_core.disk.space import check_space, is_disk_full
from longvie_core.media.concat import concat
from longvie_core.media.probe import probe
from longvie_core.media.read import read_frames
from longvie_core.plan import ClipPlan
from longvie_core.run.keys import ClipKey
from longvie_core.run.manifest import Manifest, Take
from longvie_core.run.names import check_run_name, clip_range
from longvie_core.run.store import Run
from tests.helpers.loops import finished_clip, save_clip

SIZE = 32
PLAN = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=8 * 3 + 1)
LONGER = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=8 * 4 + 1)
PADDED = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=21, tail="pad")  # clip 3 gives 4 frames


def pictures(clip: int, take: int = 0, frames: int = 9) -> np.ndarray:
    """Smooth pictures, so that h264 keeps them, different for each clip, frame and take."""
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    phase = np.arange(frames) / 9 + 0.13 * clip + 0.37 * take
    channels = [np.sin(2 * np.pi * (scale * (x + y) + phase[:, None, None])) for scale in (0.3, 0.5, 0.7)]
    return (127.5 + 100 * np.stack(channels, axis=-1)).astype(np.uint8)


def latents(clip: int, take: int = 0) -> torch.Tensor:
    return torch.full((1, 16, 3, 4, 4), 10.0 * clip + take)


def key(clip: int, **changes: str) -> ClipKey:
    return ClipKey({"plan": "32x32", "prompt": f"prompt {clip}", "noise": "0"} | changes)


KEYS = [key(clip) for clip in range(3)]


def save(run: Run, clip: int, take: int = 0, plan: ClipPlan = PLAN, **changes: str) -> Take:
    """Render a clip after those of the run's sequence that come before it."""
    result = finished_clip(plan, clip, latents(clip, take), pictures(clip, take))
    return save_clip(run, plan, key(clip, **changes), result, 1.5, run.manifest.clips[:clip], seed=7, prompt=f"a prompt {clip}")


def rendered(folder: Path, clips: int = 3, plan: ClipPlan = PLAN) -> Run:
    with Run(folder).locked() as run:
        for clip in range(clips):
            save(run, clip, plan=plan)
    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three clips."""
    folder = tmp_path_factory.mktemp("template") / "run"
    rendered(folder)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    """A copy of it, files as old as there."""
    return Path(shutil.copytree(template, tmp_path / "run"))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text("utf-8"))


def sequence_of(folder: Path) -> list[dict]:
    """The takes of the run's sequence, as ``run.json`` has them."""
    data = manifest_of(folder)
    takes = {(take["clip"], take["fingerprint"]): take for take in data["takes"]}
    return [takes[name] for name in enumerate(data["sequence"])]


def files(folder: Path, clip: int) -> dict[str, Path]:
    """Files of a clip of the sequence, counted from 1, by how they end."""
    take = sequence_of(folder)[clip - 1]
    return {"mp4": folder / take["video"]["name"], "safetensors": folder / take["latents"]["name"]}


def join(run: Run, clips: int, *rest: object, **more: object) -> Path:
    """Join the first clips of the sequence."""
    return run.assemble(run.manifest.clips[:clips], PLAN.fps, *rest, **more)


def signed(data: dict) -> dict:
    """A manifest's content with its hash: of the rest, as JSON with sorted keys and no spaces."""
    data = {name: value for name, value in data.items() if name != "sha256"}
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return {**data, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def write_manifest(folder: Path, data: dict) -> None:
    """Put a manifest in place as if the run had written it."""
    for name in ("run.json", "run.copy.json"):
        (folder / name).write_text(json.dumps(signed(data)), "utf-8")


def opened(folder: Path) -> Run:
    """A run after it was locked once."""
    with Run(folder).locked() as run:
        return run


def last_frame(folder: Path, clip: int, plan: ClipPlan = PLAN) -> np.ndarray:
    run = Run(folder)
    return run.last_frame(run.manifest.clips[clip], plan)


def decoded(path: Path) -> np.ndarray:
    return np.stack(list(read_frames(path, range(probe(path).frames))))


class TestFiles:
    def test_names(self, folder: Path) -> None:
        prints = [take["fingerprint"][:12] for take in sequence_of(folder)]
        names = [f"clip_000{clip + 1}_{prints[clip]}.{ending}" for clip in range(3) for ending in ("mp4", "safetensors")]
        assert sorted(path.name for path in folder.iterdir()) == [*names, "run.copy.json", "run.json", "run.lock"]

    def test_latents_and_tail_are_kept_bit_by_bit(self, folder: Path) -> None:
        for clip in range(3):
            stored = load_file(files(folder, clip + 1)["safetensors"])
            assert stored.keys() == {"latent", "tail"} | ({"colours"} if clip == 0 else set())
            assert torch.equal(stored["latent"], latents(clip))
            np.testing.assert_array_equal(stored["tail"].numpy(), pictures(clip))

    def test_only_the_tail_is_kept_of_a_long_clip(self, tmp_path: Path) -> None:
        plan = ClipPlan(width=SIZE, height=SIZE, frames=25, overlap=2, source_frames=25)
        frames = pictures(0, frames=25)
        save_clip(Run(tmp_path), plan, key(0), finished_clip(plan, 0, latents(0), frames), 1.0)
        np.testing.assert_array_equal(load_file(files(tmp_path, 1)["safetensors"])["tail"].numpy(), frames[-18:])

    def test_each_shared_frame_is_in_one_video_only(self, folder: Path) -> None:
        for clip, first in enumerate((0, 1, 1)):
            got = decoded(files(folder, clip + 1)["mp4"]).astype(int)
            expected = pictures(clip)[first:].astype(int)
            assert got.shape == expected.shape
            assert np.abs(got - expected).mean() < 6  # what 4:2:0 colour leaves of a picture this small
            assert np.abs(got - expected).mean() < 0.5 * np.abs(got - np.roll(expected, 1, axis=0)).mean()

    def test_manifest_tells_what_is_there(self, folder: Path) -> None:
        data = manifest_of(folder)
        assert (data["version"], data["fps"], data["videos"]) == (2, "16", [])
        takes = data["takes"]
        assert takes == sequence_of(folder) and [take["clip"] for take in takes] == [0, 1, 2]
        assert [take["frames"] for take in takes] == [9, 8, 8]
        assert [take["parts"] for take in takes] == [dict(each.parts) for each in KEYS]
        assert [take["seconds"] for take in takes] == [1.5] * 3
        assert [(take["seed"], take["prompt"]) for take in takes] == [(7, f"a prompt {clip}") for clip in range(3)]
        for take in takes:
            age = datetime.now(timezone.utc) - datetime.fromisoformat(take["created"])
            assert timedelta(seconds=-1) <= age < timedelta(hours=1)
            for file in (take["latents"], take["video"]):
                path = folder / file["name"]
                assert file["size"] == path.stat().st_size
                assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_a_take_starts_on_the_tail_of_the_one_before(self, folder: Path) -> None:
        takes = sequence_of(folder)
        assert takes[0]["start"] == "" and len({take["tail"] for take in takes}) == 3
        assert [take["start"] for take in takes[1:]] == [take["tail"] for take in takes[:2]]

    def test_a_manifest_survives_its_own_text(self, folder: Path) -> None:
        manifest = Run(folder).manifest
        assert Manifest.from_json(manifest.to_json()) == manifest

    def test_half_precision_latents_are_stored_as_float32(self, tmp_path: Path) -> None:
        save_clip(Run(tmp_path), PLAN, key(0), finished_clip(PLAN, 0, latents(3).half(), pictures(0)), 1.0)
        assert torch.equal(load_file(files(tmp_path, 1)["safetensors"])["latent"], latents(3))


class TestDecide:
    def test_a_new_run_keeps_nothing(self, tmp_path: Path) -> None:
        run = Run(tmp_path / "new" / "run")
        decision = run.decide(KEYS)
        assert (decision.kept, decision.reasons, decision.takes, decision.pending) == (0, (), (None,) * 3, (0, 1, 2))

    def test_an_unchanged_run_keeps_all(self, folder: Path) -> None:
        run = Run(folder)
        decision = run.decide(KEYS)
        assert (decision.kept, decision.reasons, decision.takes) == (3, (), run.manifest.clips)

    def test_more_clips_go_on_after_the_finished_ones(self, folder: Path) -> None:
        decision = Run(folder).decide([*KEYS, key(3)])
        assert (decision.kept, decision.pending) == (3, (3,))

    def test_fewer_clips_keep_only_what_is_wanted(self, folder: Path) -> None:
        assert Run(folder).decide(KEYS[:2]).kept == 2

    @pytest.mark.parametrize("clip", [0, 1, 2])
    def test_from_the_first_changed_clip_on_all_is_rendered_again_and_the_part_is_named(self, folder: Path, clip: int) -> None:
        keys = [*KEYS[:clip], key(clip, prompt="another"), *KEYS[clip + 1 :]]
        decision = Run(folder).decide(keys)
        assert decision.kept == clip
        assert decision.reasons == (f"clips {clip + 1} .. 3 are rendered again: prompt changed",)

    def test_parts_that_came_went_or_changed_are_all_named(self, folder: Path) -> None:
        other = ClipKey({"plan": "32x32", "prompt": "x", "sampler": "new"})
        (reason,) = Run(folder).decide([other, *KEYS[1:]]).reasons
        assert reason == "clips 1 .. 3 are rendered again: noise, prompt, sampler changed"

    def test_a_clip_made_after_another_predecessor_is_not_kept(self, folder: Path) -> None:
        """Clip 1 is rendered anew with another prompt, and the old clip 2 put after it: same parts, but not the same clip."""
        old = manifest_of(folder)
        run = Run(folder)
        new = save(run, 0, take=1, prompt="another")
        data = manifest_of(folder)
        write_manifest(folder, {**data, "sequence": [new.fingerprint, *old["sequence"][1:]]})
        decision = Run(folder).decide([key(0, prompt="another"), *KEYS[1:]])
        assert decision.kept == 1
        assert decision.reasons == ("clips 2 .. 3 are rendered again: an earlier clip changed",)

    def test_saving_a_clip_ends_the_sequence_and_forgets_no_take(self, folder: Path) -> None:
        run = Run(folder)
        old = run.manifest.takes
        save(run, 1, take=1, prompt="another")
        assert [take["parts"]["prompt"] for take in sequence_of(folder)] == ["prompt 0", "another"]
        assert Run(folder).manifest.takes[:3] == old
        assert Run(folder).decide([KEYS[0], key(1, prompt="another"), KEYS[2]]).kept == 2

    def test_saving_a_clip_that_was_asked_for_before_leaves_the_sequence_as_it_was(self, folder: Path) -> None:
        save(Run(folder), 1)
        assert len(sequence_of(folder)) == 3
        assert Run(folder).decide(KEYS).kept == 3

    def test_the_order_of_the_parts_does_not_matter(self) -> None:
        parts = {"a": "1", "b": "2"}
        assert ClipKey(parts).fingerprint("") == ClipKey(dict(reversed(parts.items()))).fingerprint("")

    @given(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), st.data())
    def test_fingerprints_differ_when_anything_does(self, parts: dict[str, str], data: st.DataObject) -> None:
        previous = data.draw(st.text(max_size=3))
        other = data.draw(st.tuples(st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3), st.text(max_size=3)))
        same = other == (parts, previous)
        assert (ClipKey(parts).fingerprint(previous) == ClipKey(other[0]).fingerprint(other[1])) == same
        assert (ClipKey(parts).changed(other[0]) == []) == (parts == other[0])


class TestFixedClips:
    def test_are_kept_although_made_with_other_settings(self, folder: Path) -> None:
        keys = [key(0, prompt="x"), key(1, noise="y"), key(2)]
        decision = Run(folder).decide(keys, fixed=2)
        assert decision.kept == 3
        assert decision.reasons == (
            "clip 1 is kept although it was made with another prompt",
            "clip 2 is kept although it was made with another noise",
        )

    def test_a_changed_clip_after_them_is_rendered_again(self, folder: Path) -> None:
        decision = Run(folder).decide([key(0, prompt="x"), KEYS[1], key(2, prompt="z")], fixed=1)
        assert decision.kept == 2
        assert decision.reasons[-1] == "clips 3 .. 3 are rendered again: prompt changed"

    def test_must_be_finished(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="clip 4 is not finished in this run yet: start the range at clip 4"):
            Run(folder).decide([*KEYS, key(3), key(4)], fixed=4)

    @pytest.mark.parametrize("changes", [{}, {"prompt": "x"}])
    def test_must_be_intact(self, folder: Path, changes: dict[str, str]) -> None:
        path = files(folder, 1)["safetensors"]
        path.unlink()
        says = rf"clip 1 must be kept, but {path.name} is missing: start the range at clip 1"
        with pytest.raises(ValueError, match=says):
            Run(folder).decide([key(0, **changes), *KEYS[1:]], fixed=1)

    def test_a_video_that_is_lost_can_be_made_again(self, folder: Path) -> None:
        path = files(folder, 1)["mp4"]
        path.unlink()
        decision = Run(folder).decide(KEYS, fixed=1)
        assert decision.kept == 3
        assert decision.reasons == (f"clip 1: its video is made again from its latents, since {path.name} is missing",)

    def test_the_next_clip_follows_the_one_that_was_kept(self, folder: Path) -> None:
        keys = [KEYS[0], key(1, prompt="x"), key(2, prompt="z")]
        run = Run(folder)
        decision = run.decide(keys, fixed=2)
        assert (decision.kept, decision.takes[:2]) == (2, run.manifest.clips[:2])
        save(run, 2, take=1, prompt="z")
        assert Run(folder).decide(keys, fixed=2).kept == 3
        assert Run(folder).decide([KEYS[0], KEYS[1], keys[2]]).kept == 3

    def test_are_never_some_of_the_sequence_and_some_of_other_takes(self, folder: Path) -> None:
        """A second take of clip 1 fits what is wanted now, but clip 2 of the sequence does not start where it ends."""
        run = Run(folder)
        first = run.manifest.clips
        second = save(run, 0, take=1, prompt="another")
        run.set_sequence(first, PLAN)
        keys = [key(0, prompt="another"), key(1, noise="x"), KEYS[2]]
        decision = run.decide(keys, fixed=2)
        assert decision.takes[:2] == first[:2]
        assert decision.reasons[:2] == (
            "clip 1 is kept although it was made with another prompt",
            "clip 2 is kept although it was made with another noise",
        )
        assert run.decide(keys, fixed=1).takes[0] == second, "alone it fits, and is what is wanted"

    def test_those_that_fit_from_the_first_on_come_before_the_sequence(self, folder: Path) -> None:
        run = Run(folder)
        first = run.manifest.clips
        save(run, 0, take=1, prompt="another")
        decision = run.decide(KEYS, fixed=2)
        assert decision.takes == first
        assert decision.reasons == ("clips 1 .. 1: earlier takes are used again",)


class TestTakes:
    def test_a_change_and_its_undoing(self, folder: Path) -> None:
        changed = [key(0, prompt="another"), *KEYS[1:]]
        before = {path.name: path.read_bytes() for path in folder.glob("clip_*")}
        run = Run(folder)
        first = run.manifest.clips
        assert run.decide(changed).kept == 0
        for clip in range(3):
            save(run, clip, take=1, **({"prompt": "another"} if clip == 0 else {}))
        second = Run(folder).manifest.clips
        assert {take.id for take in first}.isdisjoint(take.id for take in second)
        assert {path.name: path.read_bytes() for path in folder.glob("clip_*") if path.name in before} == before
        assert len(list(folder.glob("clip_*"))) == 2 * len(before)
        assert Run(folder).decide(changed).takes == second
        decision = Run(folder).decide(KEYS)
        assert decision.takes == first
        assert decision.reasons == ("clips 1 .. 3: earlier takes are used again",)
        run.set_sequence(decision.takes, PLAN)
        assert Run(folder).decide(KEYS).reasons == ()
        assert Run(folder).decide(changed).takes == second

    def test_the_newest_of_several_that_fit(self, folder: Path) -> None:
        """A clip that came out otherwise the second time takes its own place; its files are set aside, not overwritten."""
        old = {path.name: path.read_bytes() for path in files(folder, 3).values()}
        save(Run(folder), 2, take=1)
        (kept,) = {take.latents.name for take in Run(folder).manifest.of(2)}
        assert kept in old
        aside = {path.name.partition(".damaged-")[0]: path.read_bytes() for path in folder.glob("*.damaged-*")}
        assert aside == old

    def test_the_same_bytes_are_not_set_aside(self, folder: Path) -> None:
        before = {path.name: path.read_bytes() for path in folder.glob("clip_*")}
        save(Run(folder), 1)
        assert {path.name: path.read_bytes() for path in folder.glob("clip_*")} == before

    def test_what_is_set_aside_comes_back_if_its_successor_cannot_be_written(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path.name: path.read_bytes() for path in folder.glob("clip_*")}

        def full(*_: object) -> None:
            raise no_space()

        monkeypatch.setattr("longvie_core.run.store.write_atomically", full)
        with pytest.raises(OSError, match="space"):
            save(Run(folder), 1, take=1)
        assert {path.name: path.read_bytes() for path in folder.glob("clip_*")} == before

    def test_a_video_is_restored_from_decoded_frames_byte_by_byte(self, folder: Path) -> None:
        run = Run(folder)
        path = files(folder, 2)["mp4"]
        content = path.read_bytes()
        path.write_bytes(content[:-100])
        assert run.damage(run.manifest.clips[1].video)
        take = run.restore_video(run.manifest.clips[1], PLAN, pictures(1))
        assert path.read_bytes() == content and run.damage(take.video) == ""
        assert [clip.id for clip in run.manifest.clips] == [clip.id for clip in Run(folder).decide(KEYS).takes]
        assert [aside.read_bytes() for aside in folder.glob("*.damaged-*")] == [content[:-100]]

    def test_latents_are_given_back(self, folder: Path) -> None:
        run = Run(folder)
        assert torch.equal(run.latents(run.manifest.clips[2]), latents(2))

    def test_what_uses_a_take(self, folder: Path) -> None:
        run = Run(folder)
        first = run.manifest.clips
        video = join(run, 2)
        second = save(run, 0, take=1, prompt="another")
        assert run.uses() == {
            first[0].id: [video.name],
            first[1].id: [video.name],
            second.id: ["sequence"],
        }
        run.pin(first[2])
        assert run.uses()[first[2].id] == ["pinned"]
        run.pin(run.manifest.by_id[first[2].id], False)
        assert first[2].id not in run.uses()
        assert "4 takes of 3 clips occupy 0." in run.occupied() and "; 1 are in no video" in run.occupied()
        video.unlink()
        assert set(run.uses()) == {second.id}

    def test_removing_takes_leaves_the_others(self, folder: Path) -> None:
        run = Run(folder)
        first = run.manifest.clips
        second = save(run, 0, take=1, prompt="another")
        run.remove(first[1:])
        assert {take.id for take in Run(folder).manifest.takes} == {first[0].id, second.id}
        names = {file.name for take in (first[0], second) for file in (take.latents, take.video)}
        assert {path.name for path in folder.glob("clip_*")} == names
        run.remove([second])
        assert Run(folder).manifest.sequence == () and Run(folder).decide(KEYS).kept == 1


class TestDamagedClips:
    @pytest.mark.parametrize("clip", [0, 2])
    def test_missing_latents_cost_their_clip(self, folder: Path, clip: int) -> None:
        path = files(folder, clip + 1)["safetensors"]
        path.unlink()
        decision = Run(folder).decide(KEYS)
        assert (decision.kept, decision.pending) == (2, (clip,))
        assert decision.reasons == (f"clip {clip + 1} is rendered again: {path.name} is missing",)

    @pytest.mark.parametrize("clip", [0, 2])
    def test_a_missing_video_costs_no_rendering(self, folder: Path, clip: int) -> None:
        path = files(folder, clip + 1)["mp4"]
        path.unlink()
        decision = Run(folder).decide(KEYS)
        assert decision.kept == 3
        assert decision.reasons == (f"clip {clip + 1}: its video is made again from its latents, since {path.name} is missing",)

    @pytest.mark.parametrize("ending", ["mp4", "safetensors"])
    @pytest.mark.parametrize("damage", ["truncated", "emptied", "one bit", "longer"])
    def test_changed(self, folder: Path, ending: str, damage: str) -> None:
        path = files(folder, 2)[ending]
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(
            {
                "truncated": content[:middle],
                "emptied": b"",
                "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "longer": content + b"\0",
            }[damage]
        )
        decision = Run(folder).decide(KEYS)
        wrong = f"{path.name} was changed or cut off since it was written"
        if ending == "mp4":
            assert decision.kept == 3
            assert decision.reasons == (f"clip 2: its video is made again from its latents, since {wrong}",)
        else:
            assert (decision.kept, decision.pending) == (2, (1,))
            assert decision.reasons == (f"clip 2 is rendered again: {wrong}",)

    @pytest.mark.parametrize(("ending", "kept"), [("mp4", 3), ("safetensors", 2)])
    def test_a_folder_in_a_files_place(self, folder: Path, ending: str, kept: int) -> None:
        path = files(folder, 2)[ending]
        path.unlink()
        path.mkdir()
        decision = Run(folder).decide(KEYS)
        assert decision.kept == kept and f"{path.name} was changed or cut off" in decision.reasons[0]

    def test_of_the_same_size_and_time_it_takes_a_full_check(self, folder: Path) -> None:
        path = files(folder, 2)["safetensors"]
        content, status = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        run = Run(folder)
        file = run.manifest.clips[1].latents
        assert run.damage(file) == ""
        assert run.damage(file, full=True) == f"{path.name} was changed or cut off since it was written"

    def test_files_that_were_only_touched_are_read_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[str] = []

        def counted(path: Path) -> str:
            read.append(path.name)
            return hashlib.sha256(path.read_bytes()).hexdigest()

        monkeypatch.setattr("longvie_core.run.store.file_sha256", counted)
        for path in folder.glob("clip_*"):
            os.utime(path, ns=(1, 1))
        with Run(folder).locked() as run:
            decision = run.decide(KEYS)
            run.adopt(decision)
            assert decision.kept == 3 and sorted(read) == sorted(path.name for path in folder.glob("clip_*"))
            assert [run.damage(file) for take in decision.takes for file in (take.latents, take.video)] == [""] * 6
        assert Run(folder).decide(KEYS).kept == 3
        assert len(read) == 6


class Crash(Exception):
    """Stands for a kill: nothing of the program runs after it."""


class TestKilled:
    def test_half_written_files_are_removed_when_the_run_is_next_locked(self, folder: Path) -> None:
        before = {path.name for path in folder.iterdir()}
        (folder / "prompts").mkdir()
        (folder / "prompts" / "0123.safetensors").write_bytes(b"text")
        # Ours with and without a process's mark, and what the safetensors library calls its own.
        left = ["clip_0004.mp4.5f2a.part", "run.json.part", ".tmpAb12Cd", "prompts/a.safetensors.part", "prompts/.tmpAb12Cd"]
        for name in left:
            (folder / name).write_bytes(b"half a file")
        Run(folder)
        assert all((folder / name).exists() for name in left), "without the lock they may be somebody's work"
        run = opened(folder)
        assert {path.name for path in folder.iterdir()} == {*before, "prompts"}
        assert [path.name for path in (folder / "prompts").iterdir()] == ["0123.safetensors"]
        assert run.notes == ["half-written files of a stopped process were removed"]
        assert run.decide(KEYS).kept == 3
        assert opened(folder).notes == []

    def test_the_manifest_lacks_the_last_clip(self, folder: Path) -> None:
        data = manifest_of(folder)
        data["takes"].pop()
        data["sequence"].pop()
        write_manifest(folder, data)
        run = Run(folder)
        assert run.decide(KEYS).kept == 2
        save(run, 2, take=1)
        assert Run(folder).decide(KEYS).kept == 3
        np.testing.assert_array_equal(last_frame(folder, 2), pictures(2, take=1)[-1])

    @pytest.mark.parametrize("after_rename", [False, True])
    @pytest.mark.parametrize("rename", [0, 1, 2, 3])
    @pytest.mark.parametrize("clip", [0, 2, 3])
    def test_at_every_moment_of_saving(
        self, folder: Path, clip: int, rename: int, after_rename: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Saving renames four files into place; what was finished before is kept whatever happens."""
        plan = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=8 * 4 + 1)
        real, count = Path.replace, itertools.count()

        def replace(self: Path, target: Path) -> Path:
            if next(count) < rename:
                return real(self, target)
            if after_rename:
                real(self, target)
            raise Crash

        run = Run(folder)
        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(Crash):
            save(run, clip, take=1, plan=plan, prompt="another")
        monkeypatch.undo()
        assert not list(folder.glob("*.part"))

        old = [*KEYS, key(3)]
        new = [*old[:clip], key(clip, prompt="another"), *old[clip + 1 :]]
        again = opened(folder)
        assert again.notes == []
        finished = rename == 3 or (rename == 2 and after_rename)
        assert again.decide(new).kept == (clip + 1 if finished else clip)
        assert again.decide(old).kept == 3
        save(again, clip, take=1, plan=plan, prompt="another")
        assert Run(folder).decide(new).kept == clip + 1
        assert Run(folder).decide(old).kept == 3
        assert not list(folder.glob("*.damaged-*"))

    def test_a_crash_while_the_tensors_are_written_leaves_the_old_clip(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: object) -> None:
            raise Crash

        run = Run(folder)
        monkeypatch.setattr("longvie_core.run.store.save", crash)
        with pytest.raises(Crash):
            save(run, 2, take=1, prompt="another")
        assert Run(folder).decide(KEYS).kept == 3


FILE = {"name": "clip_0001.mp4", "sha256": "b", "size": 3, "mtime_ns": 4}
VIDEO = {"file": FILE | {"name": "run_00001_.mp4"}, "made_from": "c", "takes": ["f"]}
ENTRY = {
    "clip": 0,
    "fingerprint": "f",
    "parts": {"p": "1"},
    "frames": 9,
    "latents": FILE | {"name": "clip_0001.safetensors"},
    "video": FILE,
    "seconds": 1.0,
    "start": "",
    "tail": "t",
    "created": "2026-01-01T00:00:00+00:00",
    "seed": 5,
    "prompt": "a fox",
    "pinned": False,
    "former": "",
}
OLD_ENTRY = {"fingerprint": "f", "parts": {"p": "1"}, "frames": 9, "latents_sha256": "a", "video_sha256": "b", "seconds": 1.0}


def manifest_text(entry: dict | None = None, **changes: object) -> str:
    """A manifest with one take; Infinity and the like are written as Python reads them."""
    take = ENTRY | (entry or {})
    data = {"version": 2, "fps": "16", "takes": [take], "sequence": ["f"], "videos": [VIDEO]} | changes
    return json.dumps(signed({name: value for name, value in data.items() if value is not ...}))


def old_manifest_text(entry: dict | None = None, **changes: object) -> str:
    """A manifest of version 1 with one clip."""
    clip = OLD_ENTRY | (entry or {})
    data = {"version": 1, "fps": "16", "clips": [clip], "video": {}} | changes
    return json.dumps(signed({name: value for name, value in data.items() if value is not ...}))


WRONG_OF_ALL = [
    ("torn", lambda text: text()[:-20]),
    ("empty", lambda text: ""),
    ("zeros", lambda text: "\0" * 100),
    ("no JSON", lambda text: "<html>"),
    ("deep", lambda text: "[" * 100_000),
    ("no fps", lambda text: text(fps=...)),
    ("fps a number", lambda text: text(fps=16)),
    ("fps no number", lambda text: text(fps="fast")),
    ("fps by zero", lambda text: text(fps="1/0")),
    ("fps zero", lambda text: text(fps="0")),
    ("fps too large to work out", lambda text: text(fps="1e999999999")),
    ("fps of many digits", lambda text: text(fps="9" * 4000)),
    ("hash gone", lambda text: json.dumps({**json.loads(text()), "sha256": None})),
    ("edited", lambda text: text().replace('"frames": 9', '"frames": 8')),
    ("parts a list", lambda text: text({"parts": []})),
    ("parts null", lambda text: text({"parts": None})),
    ("part a number", lambda text: text({"parts": {"prompt": 3}})),
    ("part called version", lambda text: text({"parts": {"prompt": {"version": 3}}})),
    ("fingerprint null", lambda text: text({"fingerprint": None})),
    ("frames text", lambda text: text({"frames": "many"})),
    ("frames null", lambda text: text({"frames": None})),
    ("frames infinite", lambda text: text({"frames": float("inf")})),
    ("frames NaN", lambda text: text({"frames": float("nan")})),
    ("frames true", lambda text: text({"frames": True})),
    ("frames none", lambda text: text({"frames": 0})),
    ("seconds infinite", lambda text: text({"seconds": float("inf")})),
    ("seconds text", lambda text: text({"seconds": "long"})),
    ("seconds too large", lambda text: text({"seconds": 10**400})),
]
WRONG = [
    *((name, wrong(manifest_text)) for name, wrong in WRONG_OF_ALL),
    *((f"{name} (version 1)", wrong(old_manifest_text)) for name, wrong in WRONG_OF_ALL),
    ("no clips (version 1)", old_manifest_text(clips=...)),
    ("clips a number (version 1)", old_manifest_text(clips=3)),
    ("clips null (version 1)", old_manifest_text(clips=None)),
    ("clip a text (version 1)", old_manifest_text(clips=["a"])),
    ("clip a list (version 1)", old_manifest_text(clips=[[]])),
    ("clip null (version 1)", old_manifest_text(clips=[None])),
    ("no video (version 1)", old_manifest_text(video=...)),
    ("video null (version 1)", old_manifest_text(video=None)),
    ("video without a time (version 1)", old_manifest_text(video={"made_from": "c", "size": 3})),
    ("hash a number (version 1)", old_manifest_text({"video_sha256": 5})),
    ("no takes", manifest_text(takes=...)),
    ("takes a number", manifest_text(takes=3)),
    ("takes null", manifest_text(takes=None)),
    ("take a text", manifest_text(takes=["a"])),
    ("take a list", manifest_text(takes=[[]])),
    ("take null", manifest_text(takes=[None])),
    ("a take twice", manifest_text(takes=[ENTRY, ENTRY])),
    ("no videos", manifest_text(videos=...)),
    ("videos null", manifest_text(videos=None)),
    ("video null", manifest_text(videos=[None])),
    ("video of a number", manifest_text(videos=[VIDEO | {"takes": [3]}])),
    ("no sequence", manifest_text(sequence=...)),
    ("sequence of a take that is not there", manifest_text(sequence=["g"])),
    ("sequence too long", manifest_text(sequence=["f", "f"])),
    ("hash a number", manifest_text({"video": FILE | {"sha256": 5}})),
    ("size a fraction", manifest_text({"video": FILE | {"size": 1.5}})),
    ("time NaN", manifest_text({"video": FILE | {"mtime_ns": float("nan")}})),
    ("file null", manifest_text({"latents": None})),
    *(
        (f"file {name!r}", manifest_text({"latents": FILE | {"name": name}}))
        for name in ("", ".", "..", "../a", "a/b", "/etc/passwd", "a\\b", "C:a", "\0", "a\nb", 3)
    ),
    ("clip negative", manifest_text({"clip": -1})),
    ("clip a fraction", manifest_text({"clip": 0.0})),
    ("seed text", manifest_text({"seed": "5"})),
    ("seed true", manifest_text({"seed": True})),
    ("pinned a number", manifest_text({"pinned": 1})),
    ("prompt null", manifest_text({"prompt": None})),
]


class TestManifest:
    @pytest.mark.parametrize("text", [text for _, text in WRONG], ids=[name for name, _ in WRONG])
    def test_a_damaged_one_is_a_value_error_by_name(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"run\.json is damaged \("):
            Manifest.from_json(text)

    @pytest.mark.parametrize("text", [text for _, text in WRONG], ids=[name for name, _ in WRONG])
    def test_a_damaged_one_without_a_copy_is_set_aside_and_the_run_starts_over(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(text, "utf-8")
        assert Run(tmp_path).manifest == Manifest()
        assert [path.name for path in tmp_path.iterdir()] == ["run.json"], "nothing is written without the lock"
        run = opened(tmp_path)
        assert run.manifest == Manifest() and run.decide(KEYS).kept == 0
        (aside,) = [path for path in tmp_path.iterdir() if path.name != "run.lock"]
        assert aside.name.startswith("run.json.damaged-") and aside.read_text("utf-8") == text
        damaged, over = run.notes
        assert damaged.startswith("run.json is damaged") and aside.name in damaged
        assert over == "nothing is known of the clips any more, and the run starts over"

    @pytest.mark.parametrize("text", [text for _, text in WRONG], ids=[name for name, _ in WRONG])
    def test_with_a_copy_nothing_is_lost(self, text: str, folder: Path) -> None:
        good = (folder / "run.json").read_text("utf-8")
        (folder / "run.json").write_text(text, "utf-8")
        assert Run(folder).decide(KEYS).kept == 3
        run = opened(folder)
        assert run.decide(KEYS).kept == 3
        assert run.notes[0].startswith("run.json is damaged") and "set aside as run.json.damaged-" in run.notes[0]
        assert run.notes[1:] == ["run.json was restored from its copy, run.copy.json"]
        assert (folder / "run.json").read_text("utf-8") == good
        assert opened(folder).notes == []

    def test_torn_at_any_byte_it_survives(self, folder: Path) -> None:
        good = (folder / "run.json").read_text("utf-8")
        for size in range(len(good)):
            with pytest.raises(ValueError, match=r"run\.json is damaged"):
                Manifest.from_json(good[:size])
        for size in range(0, len(good), 41):
            (folder / "run.json").write_text(good[:size], "utf-8")
            assert Run(folder).decide(KEYS[:1]).kept == 1

    def test_one_that_is_gone_is_restored(self, folder: Path) -> None:
        (folder / "run.json").unlink()
        run = opened(folder)
        assert run.decide(KEYS).kept == 3 and run.notes == ["run.json was restored from its copy, run.copy.json"]
        assert manifest_of(folder)["takes"]

    def test_a_damaged_copy_does_not_matter_and_is_written_again(self, folder: Path) -> None:
        (folder / "run.copy.json").write_text("{", "utf-8")
        run = opened(folder)
        assert (run.notes, run.decide(KEYS).kept) == ([], 3)
        save(run, 2)
        assert (folder / "run.copy.json").read_bytes() == (folder / "run.json").read_bytes()

    def test_bytes_that_are_no_text_are_set_aside(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(b"\xff\xfe\0")
        assert opened(tmp_path).manifest == Manifest()
        assert [path.read_bytes() for path in tmp_path.glob("run.json*")] == [b"\xff\xfe\0"]

    def test_a_run_goes_on_after_its_manifest_was_damaged(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text("{", "utf-8")
        save(opened(tmp_path), 0)
        assert Run(tmp_path).decide(KEYS).kept == 1

    def test_a_manifest_with_signs_that_no_file_can_hold(self, tmp_path: Path) -> None:
        run = opened(tmp_path)
        save(run, 0, prompt="\ud800")
        assert Run(tmp_path).manifest.clips[0].parts["prompt"] == "\ud800"

    @pytest.mark.parametrize("version", [0, 3, 99, "1", "2", None, [1], True])
    def test_another_version_stops_and_is_left_alone(self, version: object, tmp_path: Path) -> None:
        text = manifest_text(version=version)
        (tmp_path / "run.json").write_text(text, "utf-8")
        with pytest.raises(ValueError, match=r"run\.json has version .*writes version 2: update LongVie or use another"):
            Run(tmp_path)
        assert (tmp_path / "run.json").read_text("utf-8") == text
        assert len(list(tmp_path.iterdir())) == 1

    def test_another_version_that_came_meanwhile_stops_too(self, folder: Path) -> None:
        run = Run(folder)
        (folder / "run.json").write_text('{"version": 3}', "utf-8")
        with pytest.raises(ValueError, match="has version 3"), run.locked():
            pytest.fail("it was opened")
        assert (folder / "run.json").read_text("utf-8") == '{"version": 3}'

    def test_a_future_one_with_other_fields_stops_too(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text('{"version": 3, "sections": {}}', "utf-8")
        with pytest.raises(ValueError, match="has version 3"):
            Run(tmp_path)


def as_version_1(folder: Path, **parts: str) -> list[ClipKey]:
    """Turn a run into one that version 1 wrote, with parts of its own; returns the keys of the same clips today."""
    data = manifest_of(folder)
    clips, keys, previous = [], [], ""
    for number, take in enumerate(sequence_of(folder)):
        former = {**take["parts"], **parts}
        fingerprint = ClipKey(former).fingerprint(previous)
        for ending, file in (("safetensors", take["latents"]), ("mp4", take["video"])):
            (folder / file["name"]).rename(folder / f"clip_000{number + 1}.{ending}")
        hashes = {"latents_sha256": take["latents"]["sha256"], "video_sha256": take["video"]["sha256"]}
        clips.append({"fingerprint": fingerprint, "parts": former, "frames": take["frames"], "seconds": 1.5, **hashes})
        keys.append(ClipKey(take["parts"], former))
        previous = fingerprint
    (folder / "video.mp4").write_bytes(b"joined")
    status = (folder / "video.mp4").stat()
    video = {"made_from": "x", "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    write_manifest(folder, {"version": 1, "fps": data["fps"], "clips": clips, "video": video})
    return keys


class TestVersion1:
    def test_is_carried_over_and_its_files_keep_their_names(self, folder: Path) -> None:
        keys = as_version_1(folder, rate="16")
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".mp4", ".safetensors")}
        assert len(before) == 7 and "clip_0003.safetensors" in before
        with Run(folder).locked() as run:
            decision = run.decide(keys)
            assert (decision.kept, decision.reasons) == (3, ())
            run.adopt(decision)
            run.set_sequence(decision.takes, PLAN)
        assert {name: (folder / name).read_bytes() for name in before} == before
        assert manifest_of(folder)["version"] == 2
        assert [take["parts"] for take in sequence_of(folder)] == [dict(each.parts) for each in KEYS]
        sizes = [len(before[f"clip_000{number}.safetensors"]) for number in (1, 2, 3)]
        assert [take["latents"]["size"] for take in sequence_of(folder)] == sizes
        # From now on they are known under today's parts alone.
        assert Run(folder).decide(KEYS).kept == 3
        assert all("video.mp4" in uses and "sequence" in uses for uses in Run(folder).uses().values())

    def test_is_carried_over_bit_by_bit(self, folder: Path) -> None:
        """A clip after those of version 1 continues them; they are kept under their new fingerprints, and their files found."""
        keys = [*as_version_1(folder, rate="16"), ClipKey(key(3).parts, {"no": "such"})]
        with Run(folder).locked() as run:
            run.adopt(run.decide(keys))
            save(run, 3, plan=LONGER)
        assert Run(folder).decide([*KEYS, key(3)]).kept == 4

    def test_a_part_of_it_may_be_asked_for_first(self, folder: Path) -> None:
        keys = as_version_1(folder, rate="16")
        with Run(folder).locked() as run:
            run.adopt(run.decide(keys[:1]))
        assert Run(folder).decide(keys).kept == 3

    def test_lost_latents_cost_their_clip(self, folder: Path) -> None:
        keys = as_version_1(folder, rate="16")
        (folder / "clip_0002.safetensors").unlink()
        with Run(folder).locked() as run:
            decision = run.decide(keys)
            assert decision.pending == (1,)
            assert decision.reasons == ("clip 2 is rendered again: clip_0002.safetensors is missing",)
            run.adopt(decision)
            (lost,) = run.manifest.of(1)
            assert save(run, 1).latents.sha256 == lost.latents.sha256
        decision = Run(folder).decide(keys)
        assert decision.kept == 3
        run.adopt(decision)
        assert Run(folder).decide(KEYS).kept == 3

    def test_other_takes_and_a_video_beside_it(self, folder: Path) -> None:
        """What was joined of it before it had today's fingerprints is known to be made of it afterwards."""
        keys = as_version_1(folder, rate="16")
        with Run(folder).locked() as run:
            video = join(run, 3)
            save(run, 0, take=1, prompt="another")
            decision = run.decide(keys)
            run.adopt(decision)
            assert [run.uses()[take.id] for take in decision.takes] == [["video.mp4", video.name]] * 3
            (folder / "video.mp4").unlink()
            assert [run.uses()[take.id] for take in decision.takes] == [[video.name]] * 3

    def test_without_a_video(self) -> None:
        manifest = Manifest.from_json(old_manifest_text())
        assert (manifest.videos, len(manifest.clips), manifest.fps) == ((), 1, "16")
        assert Manifest.from_json(manifest.to_json()) == manifest


class TestLocked:
    def test_a_second_loop_on_the_same_run_is_refused(self, folder: Path) -> None:
        with Run(folder).locked():
            with pytest.raises(ValueError, match=rf"run 'run' is being written by process {os.getpid()} on .*: wait until"):
                opened(folder)
            opened(folder.with_name("another"))
        opened(folder)

    def test_the_manifest_is_the_one_of_the_moment_of_locking(self, folder: Path) -> None:
        early = Run(folder)
        save(Run(folder), 0, take=1, prompt="another")
        assert early.decide([key(0, prompt="another")]).kept == 0
        with early.locked():
            assert early.decide([key(0, prompt="another")]).kept == 1

    def test_a_file_in_the_folders_place(self, tmp_path: Path) -> None:
        (tmp_path / "longvie").write_text("")
        for folder in (tmp_path / "longvie", tmp_path / "longvie" / "run"):
            with pytest.raises(ValueError, match=rf"run '{folder.name}' cannot be written or read .*: make its folder"):
                Run(folder)

    def test_a_folder_in_the_manifests_place(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").mkdir()
        with pytest.raises(ValueError, match=r"cannot be written or read .*run\.json"):
            Run(tmp_path)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="rights do not bind the root user")
    def test_a_folder_without_the_right_to_write(self, folder: Path) -> None:
        folder.chmod(0o555)
        (folder / "run.lock").chmod(0o444)
        with pytest.raises(ValueError, match="cannot be written or read"):
            opened(folder)

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
    def test_a_folder_that_cannot_be_written(self, folder: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, *_: object) -> int:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr("longvie_core.disk.lock.os.open", refuse)
        with pytest.raises(ValueError, match=rf"run 'run' cannot be written or read \({os.strerror(number)}: .*run\.lock"):
            opened(folder)

    def test_errors_that_are_not_the_disks_pass(self, folder: Path) -> None:
        for error in (KeyError("x"), ValueError("y"), FileNotFoundError(errno.ENOENT, "none", "/elsewhere"), Crash()):
            with pytest.raises(type(error)) as caught, Run(folder).locked():
                raise error
            assert caught.value is error


class TestLinks:
    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_bytes(b"precious")
        return outside

    @pytest.mark.parametrize("name", ["prompts", "CLIP", "run.lock", "anything"])
    def test_that_lead_out_are_refused(self, name: str, folder: Path, outside: Path) -> None:
        name = files(folder, 1)["mp4"].name if name == "CLIP" else name
        (folder / name).unlink(missing_ok=True)
        target = outside if name == "prompts" else outside / "precious"
        (folder / name).symlink_to(target, target_is_directory=target.is_dir())
        with pytest.raises(ValueError, match=rf"{name} in run 'run' is a link that leads out of the run's folder: remove it"):
            opened(folder)
        assert [path.read_bytes() for path in outside.iterdir()] == [b"precious"]

    def test_of_half_written_files_are_not_written_through(self, folder: Path, outside: Path) -> None:
        opened(folder)
        for path in (*files(folder, 1).values(), folder / "run.json"):
            temporary_name(path).symlink_to(outside / "precious")
        with pytest.raises(ValueError, match="leads out"):
            opened(folder)
        for path in (files(folder, 1)["safetensors"], folder / "run.json"):
            write_atomically(path, lambda part: part.write_bytes(b"new"))
            assert path.read_bytes() == b"new" and not path.is_symlink()
        assert (outside / "precious").read_bytes() == b"precious"

    def test_files_that_came_as_links_are_replaced(self, folder: Path, outside: Path) -> None:
        """Between locking and writing: what a link shows is not touched."""
        with Run(folder).locked() as run:
            video = folder / "run_00001_.mp4"
            for path in (*files(folder, 1).values(), folder / "run.json", folder / "run.copy.json", video):
                path.unlink(missing_ok=True)
                path.symlink_to(outside / "precious")
            save(run, 0)
            assert join(run, 1) != video, "the name was taken"
            video.unlink()
        assert not [path for path in folder.iterdir() if path.is_symlink()]
        assert [path.read_bytes() for path in outside.iterdir()] == [b"precious"]


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestFullDisk:
    @pytest.mark.parametrize(
        "error",
        [
            no_space(),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            av.error.OSError(errno.ENOSPC, "No space left on device", "clip_0003.mp4"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
        ids=["write", "quota", "PyAV", "safetensors"],
    )
    def test_is_one_error_that_says_what_is_safe(self, folder: Path, error: Exception) -> None:
        where = re.escape(str(folder))
        says = rf"the disk is full: 2 of 4 clips are finished and safe in {where}; free space and queue again"
        with pytest.raises(ValueError, match=says), Run(folder).locked() as run:
            assert run.decide([*KEYS[:2], key(2, prompt="x"), key(3)]).kept == 2
            raise error
        with pytest.raises(ValueError, match=r"the disk is full: 3 clips are finished"), Run(folder).locked() as run:
            raise error

    def test_an_error_because_of_it_counts_too(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="the disk is full"), Run(folder).locked():
            try:
                raise no_space()
            except OSError as error:
                raise ValueError("cannot encode") from error

    def test_clips_that_came_meanwhile_are_counted(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="the disk is full: 2 of 3 clips"), Run(tmp_path).locked() as run:
            run.decide(KEYS)
            save(run, 0)
            save(run, 1)
            raise no_space()

    @pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), SafetensorError("bad (os error 5)"), ValueError("28")])
    def test_other_errors_are_not_taken_for_it(self, error: Exception) -> None:
        assert not is_disk_full(error)

    def test_nothing_half_written_is_left_and_the_rest_is_intact(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The disk fills at every flush in turn: latents, video, manifest, its copy."""
        before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.lock"}
        real = os.fsync
        for full_at in range(4):
            count = itertools.count()

            def fsync(file: int, full_at: int = full_at, count: itertools.count = count) -> None:
                if stat.S_ISREG(os.fstat(file).st_mode) and next(count) == full_at:
                    raise no_space()
                real(file)

            monkeypatch.setattr(os, "fsync", fsync)
            with pytest.raises(ValueError, match="the disk is full"), Run(folder).locked() as run:
                save(run, 3, plan=ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=33))
            monkeypatch.undo()
            assert not list(folder.glob("*.part"))
            kept = {name: (folder / name).read_bytes() for name in before if not name.endswith(".json")}
            assert kept == {name: content for name, content in before.items() if name in kept}
            assert Run(folder).decide(KEYS).kept == 3


class TestSpace:
    def test_what_is_needed_is_never_less_than_what_is_taken(self, tmp_path: Path) -> None:
        """Noise, the most that h264 can be asked for; the whole run and from its second clip on."""
        plan = ClipPlan(width=64, height=48, frames=17, source_frames=49)
        noise = np.random.default_rng(0).integers(0, 256, (3, 17, 48, 64, 3), dtype=np.uint8)
        taken = []
        with Run(tmp_path).locked() as run:
            estimates = [run.estimate(plan, 3)]
            for clip in range(3):
                result = finished_clip(plan, clip, torch.zeros(1, 16, 5, 6, 8), noise[clip])
                save_clip(run, plan, key(clip), result, 1.0, run.manifest.clips[:clip])
                taken.append(sum(path.stat().st_size for path in tmp_path.glob(f"clip_{clip + 1:04d}_*")))
                if clip == 0:
                    estimates.append(run.estimate(plan, 2, run.manifest.clips))
            video = join(run, 3).stat().st_size
        for estimate, needed in zip(estimates, (sum(taken) + video, sum(taken[1:]) + video), strict=True):
            assert needed <= estimate <= 3 * needed + 4 * (64 << 10)

    def test_it_learns_from_the_clips_that_are_kept(self, folder: Path) -> None:
        run = Run(folder)
        plan = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=81)
        kept = run.manifest.clips
        assert run.estimate(plan, 7, kept) < run.estimate(plan, 7, kept, texts=1) - 8 * 2**20 + 1
        fresh = Run(folder.with_name("fresh"))
        assert 0 < run.estimate(plan, 7, kept) < fresh.estimate(plan, 10)
        assert run.estimate(plan, 7, kept) > run.estimate(plan, 6, kept)

    def test_a_full_size_clip(self, tmp_path: Path) -> None:
        """By hand: 16 x 21 x 44 x 80 float32, 17 + 1 frames of 640x352, one byte a pixel twice."""
        plan = ClipPlan(source_frames=81)
        by_hand = 16 * 21 * 44 * 80 * 4 + 18 * 640 * 352 * 3 + 2 * 81 * 640 * 352
        assert Run(tmp_path).estimate(plan, 1) == pytest.approx(by_hand, rel=0.01)

    def test_too_little_is_refused_with_both_numbers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=3 << 20))
        check_space(tmp_path / "not" / "made", 3 << 20)
        says = r"run has 3\.0 MiB of free disk space, but up to 1\.5 GiB are needed: free 1\.5 GiB, render fewer clips"
        with pytest.raises(ValueError, match=says):
            check_space(tmp_path / "run", 3 << 29)

    def test_the_real_disk_is_asked(self, tmp_path: Path) -> None:
        check_space(tmp_path, 1)
        with pytest.raises(ValueError, match="free disk space"):
            check_space(tmp_path, 1 << 62)


class TestAssemble:
    def test_shows_every_frame_of_the_clips_once(self, folder: Path) -> None:
        video = join(Run(folder), 3)
        assert video == folder / "run_00001_.mp4"
        info = probe(video)
        assert (info.frames, info.fps, info.width, info.height) == (25, Fraction(16), SIZE, SIZE)
        clips = np.concatenate([decoded(files(folder, clip)["mp4"]) for clip in (1, 2, 3)])
        np.testing.assert_array_equal(decoded(video), clips)
        source = np.concatenate([pictures(clip)[min(clip, 1) :] for clip in range(3)])
        assert np.abs(decoded(video).astype(int) - source).mean() < 6

    def test_the_first_clips_alone(self, folder: Path) -> None:
        assert probe(join(Run(folder), 2)).frames == 17

    def test_another_rate_is_the_videos_alone(self, folder: Path) -> None:
        run = Run(folder)
        takes = run.manifest.clips
        video = run.assemble(takes, Fraction(24))
        assert (probe(video).fps, probe(video).frames) == (Fraction(24), 25)
        assert run.manifest.takes == takes and run.manifest.fps == "24"

    def test_is_remade_only_when_needed_and_none_is_ever_replaced(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made: list[int] = []

        def counted(paths: list[Path], *rest: object, **more: object) -> None:
            made.append(len(paths))
            concat(paths, *rest, **more)

        monkeypatch.setattr("longvie_core.run.store.concat", counted)
        seen: dict[Path, bytes] = {}

        def assemble(clips: int, metadata: dict | None = None) -> tuple[int, int]:
            """How many times a video was joined for it, by a run that is opened anew; and the number that it bears."""
            before = len(made)
            path = join(Run(folder), clips, metadata)
            for video, content in seen.items():
                assert not video.exists() or video.read_bytes() == content, "a video was replaced"
            seen[path] = path.read_bytes()
            return len(made) - before, int(path.name.split("_")[-2])

        assert assemble(3) == (1, 1)
        assert assemble(3) == (0, 1)
        assert assemble(3, {}) == (0, 1)
        assert assemble(2) == (1, 2) and assemble(3) == (0, 1), "another number of clips"
        assert assemble(3, {"prompt": "{}"}) == (0, 1), "the prompt alone makes no other video"
        os.utime(folder / "run_00001_.mp4", ns=(1, 1))
        assert assemble(3) == (0, 1), "it was only touched"
        (folder / "run_00001_.mp4").write_bytes(b"edited")
        seen[folder / "run_00001_.mp4"] = b"edited"
        assert assemble(3) == (1, 3) and probe(folder / "run_00003_.mp4").frames == 25
        (folder / "run_00003_.mp4").unlink()
        assert assemble(3) == (1, 3)
        save(Run(folder), 2, take=1)
        assert assemble(3) == (1, 4)
        np.testing.assert_array_equal(
            decoded(folder / "run_00004_.mp4")[-8:], decoded(files(folder, 3)["mp4"]), "the new clip is not in the video"
        )

    def test_the_first_of_two_versions_finds_its_video_again(self, folder: Path) -> None:
        run = Run(folder)
        first = run.manifest.clips
        video = join(run, 3)
        save(run, 2, take=1, prompt="another")
        assert join(run, 3) != video
        assert run.assemble(first, PLAN.fps) == video

    def test_numbers_go_on_after_what_lies_there(self, folder: Path) -> None:
        for name in ("run_00041_.mp4", "run_99_.mp4", "other_00099_.mp4", "run_00077_.mov", "run_00078.mp4"):
            (folder / name).write_bytes(b"mine")
        assert join(Run(folder), 3).name == "run_00042_.mp4"
        assert (folder / "run_00041_.mp4").read_bytes() == b"mine"

    def test_metadata_is_in_the_file(self, folder: Path) -> None:
        video = join(Run(folder), 3, {"prompt": '{"1": "é"}'})
        with av.open(str(video)) as container:
            assert container.metadata["prompt"] == '{"1": "é"}'

    def test_no_clips_are_refused(self, folder: Path) -> None:
        with pytest.raises(ValueError, match="no clip is finished"):
            join(Run(folder), 0)
        assert not list(folder.glob("run_*.mp4"))

    def test_state_changes_with_the_manifest_and_the_videos(self, folder: Path) -> None:
        states = [Run(folder).state()]
        first = join(Run(folder), 3)
        states.append(Run(folder).state())
        assert Run(folder).state() == states[-1]
        join(Run(folder), 3)
        assert Run(folder).state() == states[-1]
        save(Run(folder), 2, take=1)
        states.append(Run(folder).state())
        join(Run(folder), 3)
        states.append(Run(folder).state())
        first.unlink()
        states.append(Run(folder).state())
        assert len(set(states)) == 5


class TestPaddedTail:
    def test_what_was_padded_is_in_no_video(self, tmp_path: Path) -> None:
        run = rendered(tmp_path, plan=PADDED)
        assert [take["frames"] for take in sequence_of(tmp_path)] == [9, 8, 4]
        assert probe(files(tmp_path, 3)["mp4"]).frames == 4
        assert probe(join(run, 3)).frames == 21

    def test_last_frame_is_the_videos(self, tmp_path: Path) -> None:
        run = rendered(tmp_path, plan=PADDED)
        np.testing.assert_array_equal(last_frame(tmp_path, 2, PADDED), pictures(2)[4])
        np.testing.assert_array_equal(last_frame(tmp_path, 1, PADDED), pictures(1)[8])
        got = decoded(join(run, 3))[-1].astype(int)
        differences = [np.abs(got - frame).mean() for frame in pictures(2).astype(int)]
        assert int(np.argmin(differences)) == 4

    def test_last_frame_of_whole_clips(self, folder: Path) -> None:
        for clip in range(3):
            np.testing.assert_array_equal(last_frame(folder, clip), pictures(clip)[8])


class TestCarry:
    def test_is_the_finished_clips_tail(self, folder: Path) -> None:
        run = Run(folder)
        carry = run.carry(run.manifest.clips[1], PLAN)
        assert not carry.first
        np.testing.assert_array_equal(carry.frames, pictures(1))
        np.testing.assert_array_equal(carry.start_frame(PLAN), pictures(1)[8])
        np.testing.assert_array_equal(carry.history(PLAN, 8), pictures(1)[1:])

    @pytest.mark.parametrize(
        "tensors", [{}, {"tail": torch.zeros(9, SIZE, SIZE, 3)}, {"tail": torch.zeros(9, SIZE, dtype=torch.uint8)}, None]
    )
    def test_a_file_without_a_tail_is_refused_by_name(self, folder: Path, tensors: dict | None) -> None:
        path = files(folder, 1)["safetensors"]
        path.write_bytes(b"none") if tensors is None else save_file(tensors, path)
        run = Run(folder)
        take = run.manifest.clips[0]
        for read in (lambda: run.carry(take, PLAN), lambda: run.last_frame(take, PLAN)):
            with pytest.raises(ValueError, match=rf"{path.name} .*: render clip 1 again"):
                read()

    def test_latents_that_cannot_be_read_are_named(self, folder: Path) -> None:
        path = files(folder, 1)["safetensors"]
        path.write_bytes(b"none")
        run = Run(folder)
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read .*: render clip 1 again"):
            run.latents(run.manifest.clips[0])

    def test_another_size_is_named(self, folder: Path) -> None:
        plan = ClipPlan(width=48, height=SIZE, frames=9, source_frames=25)
        run = Run(folder)
        with pytest.raises(ValueError, match="clip 1 was rendered at 32x32, the plan says 48x32: keep the size"):
            run.carry(run.manifest.clips[0], plan)


class TestClipRange:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", range(5)),
            ("  ", range(5)),
            ("-", range(5)),
            ("1", range(1)),
            ("3", range(2, 3)),
            (" 5 ", range(4, 5)),
            ("3-5", range(2, 5)),
            ("2 - 2", range(1, 2)),
            ("4-", range(3, 5)),
            ("-2", range(2)),
            ("1-5", range(5)),
            ("003", range(2, 3)),
        ],
    )
    def test_of_five_clips(self, text: str, expected: range) -> None:
        assert clip_range(text, 5) == expected

    @pytest.mark.parametrize("text", ["a", "1,2", "1-2-3", "1.5", "--2", "3 4", "+3", "1-a", "\x003", "1234567"])
    def test_other_text_is_refused_with_the_mend(self, text: str) -> None:
        for clips in (5, None):
            with pytest.raises(ValueError, match=r"is no range: leave it empty for all, or write 3, 3-5, or 4-"):
                clip_range(text, clips)

    @pytest.mark.parametrize("text", ["0", "0-3", "-0", "5-3", "2-1"])
    def test_empty_ranges_are_refused(self, text: str) -> None:
        for clips in (5, None):
            with pytest.raises(ValueError, match="is an empty range: clips count from 1"):
                clip_range(text, clips)

    @pytest.mark.parametrize(("text", "clips"), [("6", 5), ("3-6", 5), ("6-", 5), ("-6", 5), ("", 0), ("1", 0), ("999999", 5)])
    def test_clips_that_are_not_there_are_refused(self, text: str, clips: int) -> None:
        with pytest.raises(ValueError, match=f"is outside the {clips} clips of this plan"):
            clip_range(text, clips)

    def test_the_text_alone_can_be_checked(self) -> None:
        for text in ("", "3", "3-5", "4-", "-2", "999999"):
            clip_range(text, None)

    @given(st.text(max_size=8) | st.from_regex(r"\A\s*\d{0,3}\s*-?\s*\d{0,3}\s*\Z"), st.integers(0, 9))
    def test_any_text_is_a_range_inside_the_clips_or_a_value_error(self, text: str, clips: int) -> None:
        try:
            wanted = clip_range(text, clips)
        except ValueError:
            return
        assert 0 <= wanted.start < wanted.stop <= clips


DEVICES = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", *(port + n for port in ("COM", "LPT") for n in "0123456789¹²³")}


def windows_device(name: str) -> bool:
    """Windows looks at what is before the first dot, without the spaces after it."""
    return name.split(".")[0].rstrip(" ").upper() in DEVICES


class TestRunName:
    @pytest.mark.parametrize(
        "name", ["longvie", "a", "Run 7", "take-2_b.v3", "é龍", "a" * 100, "CONTEXT", "com", "nullify", "~", "$HOME", "%2e%2e"]
    )
    def test_plain_names_are_kept(self, name: str) -> None:
        assert check_run_name(name) == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("", "has 0 characters"),
            ("a" * 101, "has 101 characters: use 1 to 100"),
            ("..", "starts or ends with a dot"),
            (".", "starts or ends with a dot"),
            (".hidden", "starts or ends with a dot"),
            ("a.", "starts or ends with a dot"),
            (" a", "starts or ends with a dot or space"),
            ("a ", "starts or ends with a dot or space"),
            ("../a", "holds '/'"),
            ("a/../b", "holds '/'"),
            ("/etc", "holds '/'"),
            ("a\\b", r"holds '\\\\'"),
            ("C:x", "holds ':'"),
            ("a*?", r"holds '\*', '\?'"),
            ("a\0b", r"holds '\\x00'"),
            ("a\nb", r"holds '\\n'"),
            ("a\u202eb", r"holds '\\u202e'"),
            ("a\ud800", "holds"),
            ("con", "device name on Windows"),
            ("NUL.txt", "device name on Windows"),
            ("nul .txt", "device name on Windows"),
            ("Lpt9", "device name on Windows"),
            ("COM¹", "device name on Windows"),
            ("CONIN$", "device name on Windows"),
        ],
    )
    def test_others_are_refused_with_the_reason(self, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            check_run_name(name)

    @given(
        st.text(max_size=12)
        | st.text(st.sampled_from("./\\ ~:a\0"), max_size=6)
        | st.builds(
            "{}{}{}".format,
            st.sampled_from(sorted(DEVICES) + ["con", "Aux"]),
            st.sampled_from(["", " ", "  ", "x"]),
            st.sampled_from(["", ".", ".txt", ". ", ".a.b"]),
        )
    )
    def test_whatever_passes_is_one_folder_directly_inside(self, name: str) -> None:
        try:
            check_run_name(name)
        except ValueError:
            return
        root = Path(tempfile.gettempdir()).resolve()
        assert (root / name).resolve().parent == root
        there = PureWindowsPath("C:/runs") / name
        assert there.parts == ("C:\\", "runs", name)
        assert not windows_device(name)
        assert name == name.strip(" .") and name.isprintable()

    @pytest.mark.parametrize("character", ["a", "é", "龍", "\U0001f600"])
    def test_the_longest_name_that_passes_can_be_a_folder(self, character: str, tmp_path: Path) -> None:
        """File systems count bytes (255 at most), not characters."""
        for length in range(100, 0, -1):
            name = character * length
            try:
                check_run_name(name)
            except ValueError as error:
                assert str(length) in str(error) or str(len(name.encode())) in str(error)
                continue
            assert length >= 50
            Run(tmp_path / name)
            break


def test_all_files_of_a_run_are_inside_its_folder(folder: Path) -> None:
    run = Run(folder)
    video = join(run, 3)
    manifest = Run(folder).manifest
    stored = [file for take in manifest.takes for file in (take.latents, take.video)] + [manifest.videos[0].file]
    assert {run.path(file).parent for file in stored} == {folder} and run.path(stored[-1]) == video
    plan = ClipPlan(width=SIZE, height=SIZE, frames=9, source_frames=8 * 10_000 + 1)
    for clip, name in ((9, "clip_0010"), (9999, "clip_10000")):
        take = save_clip(run, plan, key(clip), finished_clip(plan, clip, latents(0), pictures(0)), 1.0)
        assert {take.latents.name, take.video.name} == {f"{name}_{take.fingerprint[:12]}.{e}" for e in ("safetensors", "mp4")}
