"""``python -m longvie_core.run``: what it says of runs, and that it deletes what nothing needs and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from longvie_core.plan import ClipPlan
from longvie_core.run.__main__ import main
from longvie_core.run.keys import ClipKey
from longvie_core.run.manifest import Take
from longvie_core.run.store import Run
from tests.helpers.loops import finished_clip, save_clip
from tests.helpers.places import ROOT

PLAN = ClipPlan(width=32, height=32, frames=5, source_frames=13)
CLIPS = 3


def save(run: Run, clip: int, prompt: str, seed: int | None = 7) -> Take:
    frames = np.full((5, 32, 32, 3), 40 * clip + len(prompt), np.uint8)
    result = finished_clip(PLAN, clip, torch.full((1, 16, 2, 4, 4), float(clip)), frames)
    return save_clip(run, PLAN, ClipKey({"prompt": prompt}), result, 12.34, run.manifest.clips[:clip], seed, prompt)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with a video, then another second and third clip without one; clip 1 belongs to both."""
    folder = tmp_path_factory.mktemp("template") / "runs" / "horse"
    with Run(folder).locked() as run:
        for clip in range(CLIPS):
            save(run, clip, f"a horse {clip}")
        run.assemble(run.manifest.clips, PLAN.fps)
        for clip in (1, 2):
            save(run, clip, f"a cow\n\tnumber {clip} \ud800 that grazes on a very long meadow", seed=2**63)
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "runs" / "horse"))


def said(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """What a command prints that must end with this code."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == code
    out, error = capsys.readouterr()
    assert bool(error) is (code == 1 and not out)
    return out or error


def rows(text: str) -> list[list[str]]:
    """Cells of a table."""
    return [[cell for cell in line.split("  ") if cell] for line in text.splitlines()]


def spare(folder: Path) -> Path:
    """A run whose first version is the one that the last queue asked for again: two takes are in no video."""
    run = Run(folder)
    first = [take for take in run.manifest.takes if "horse" in take.prompt]
    run.set_sequence(first, PLAN)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != "run.lock"}


class TestList:
    @pytest.mark.parametrize("where", ["run", "folder of runs"])
    def test_a_line_a_run(self, folder: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
        (folder.parent / "no run").mkdir()
        (folder.parent / "a file").write_text("")
        text = said(capsys, "list", folder if where == "run" else folder.parent)
        head, row = rows(text)
        assert [cell.strip() for cell in head] == ["run", "clips", "takes", "size", "age", "videos"]
        name, clips, takes, size, age, videos = (cell.strip() for cell in row)
        bytes_of_takes = sum(path.stat().st_size for path in folder.glob("clip_*"))
        assert (name, clips, takes, videos) == ("horse", "3", "5", "1")
        assert size == f"{bytes_of_takes / 2**20:.1f} MiB" and age.split()[1] in ("s", "min")

    def test_a_run_of_another_version_is_named_beside_the_others(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        newer = folder.parent / "newer"
        newer.mkdir()
        (newer / "run.json").write_text('{"version": 99}')
        text = said(capsys, "list", folder.parent)
        assert "horse" in text and "newer" in text and "version 99" in text

    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in (tmp_path, tmp_path / "none"):
            assert f"list failed: there is no run in {path}: give a run's folder" in said(capsys, "list", path, code=1)
        assert list(tmp_path.iterdir()) == [], "nothing was made"


class TestShow:
    def test_a_line_a_take_with_what_uses_it(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = said(capsys, "show", folder)
        takes = Run(folder).manifest.takes
        body = text.splitlines()[1:]
        assert len(body) == len(takes) == 5
        assert [line.split()[0] for line in body] == ["1", "2", "2", "3", "3"]
        for take in takes:
            (line,) = [line for line in body if line.split()[1] == take.fingerprint[:8]]
            seconds, seed = [cell.strip() for cell in line.split("  ") if cell][4:6]
            assert (seconds, seed) == ("12.3 s", "7" if "horse" in take.prompt else str(2**63))
            used = line.rpartition("  ")[2]
            shared = "sequence, horse_00001_.mp4"
            assert used == (shared if take.clip == 0 else "horse_00001_.mp4" if "horse" in take.prompt else "sequence")
        assert "a horse 1 " in text and "a cow number 1 ? that grazes on" not in text and "meadow" not in text
        assert "a cow number 1" in text and text.count("…") == 2

    def test_a_check_reads_every_byte(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert said(capsys, "show", folder, "--check").endswith("every file is as it was written\n")
        assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
        take = Run(folder).manifest.takes[1]
        path = folder / take.latents.name
        status = path.stat()
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        (folder / take.video.name).unlink()
        text = said(capsys, "show", folder, "--check", code=1)
        which = f"clip 2, take {take.fingerprint[:8]}: "
        assert f"{which}{path.name} was changed or cut off" in text and f"{which}{take.video.name} is missing" in text
        assert "was changed" not in said(capsys, "show", folder)

    def test_what_lies_beside_the_takes_is_counted(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "clip_0009_0123456789ab.mp4").write_bytes(b"x")
        assert "1 file beside the takes: prune lists them" in said(capsys, "show", folder)

    @pytest.mark.parametrize("command", [("show",), ("prune",), ("keep", "1", "a"), ("unkeep", "1", "a")])
    def test_no_run_there(self, tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
        for path in (tmp_path, tmp_path / "none"):
            text = said(capsys, command[0], path, *command[1:], code=1)
            assert text == f"{command[0]} failed: {path} holds no run: give the folder that run.json lies in\n"
        assert list(tmp_path.iterdir()) == [], "nothing was made"


class TestPrune:
    def test_what_is_used_is_kept(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = listing(folder)
        for options in ((), ("--yes",)):
            assert "every take is used, and nothing else lies there" in said(capsys, "prune", folder, *options)
            assert listing(folder) == before

    def test_without_yes_it_only_shows(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = listing(spare(folder))
        text = said(capsys, "prune", folder)
        cows = [take for take in Run(folder).manifest.takes if "cow" in take.prompt]
        assert len(cows) == 2 and all(take.fingerprint[:8] in text for take in cows)
        size = sum(take.size for take in cows) / 2**20
        assert text.splitlines()[-1] == f"2 takes and 0 files, {size:.1f} MiB: prune --yes deletes them for good"
        assert listing(folder) == before

    def test_with_yes_it_deletes_and_says_so(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        before = listing(spare(folder))
        cows = [take for take in Run(folder).manifest.takes if "cow" in take.prompt]
        text = said(capsys, "prune", folder, "--yes")
        assert "2 takes and 0 files" in text and text.endswith(": deleted\n")
        gone = {file.name for take in cows for file in (take.latents, take.video)}
        after = listing(folder)
        assert before.keys() - after.keys() == gone and len(gone) == 4
        assert all(before[name] == content for name, content in after.items() if not name.startswith("run."))
        assert [take.prompt for take in Run(folder).manifest.takes] == ["a horse 0", "a horse 1", "a horse 2"]
        assert "every take is used" in said(capsys, "prune", folder)

    def test_a_video_that_was_deleted_needs_nothing(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "horse_00001_.mp4").unlink()
        said(capsys, "prune", folder, "--yes")
        assert [take.prompt[:5] for take in Run(folder).manifest.clips] == ["a hor", "a cow", "a cow"]
        assert len(Run(folder).manifest.takes) == 3

    def test_a_take_that_is_kept_stays_until_it_no_longer_is(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = Run(spare(folder))
        cow = next(take for take in run.manifest.takes if "cow" in take.prompt)
        start = cow.fingerprint[:6].upper()
        short = cow.fingerprint[:8]
        assert said(capsys, "keep", folder, cow.clip + 1, start) == f"clip 2, take {short}: kept until unkeep\n"
        assert "pinned" in said(capsys, "show", folder)
        assert "1 take and 0 files" in said(capsys, "prune", folder, "--yes")
        assert cow.id in Run(folder).manifest.by_id
        assert "no longer kept" in said(capsys, "unkeep", folder, cow.clip + 1, cow.fingerprint)
        assert "1 take and 0 files" in said(capsys, "prune", folder, "--yes")
        assert cow.id not in Run(folder).manifest.by_id

    def test_leftovers_are_shown_and_deleted_and_nothing_else_is(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        take = Run(folder).manifest.takes[0]
        left = ["clip_0001.mp4.damaged-123", "clip_0009_0123456789ab.safetensors", "run.json.damaged-1", "clip_0001.mp4"]
        mine = ["my clip_0001.mp4", "clip_one.mp4", "horse_00007_.mp4", "notes.damaged", "video.mp4", "dense_0.mkv"]
        for name in [*left, *mine]:
            (folder / name).write_bytes(b"x" * 2**19)
        before = listing(folder)
        text = said(capsys, "prune", folder)
        assert all(f"\n{name} " in text for name in left) and not any(f"\n{name} " in text for name in mine)
        assert text.splitlines()[-1].startswith("0 takes and 4 files, 2.0 MiB: prune --yes")
        assert listing(folder) == before
        said(capsys, "prune", folder, "--yes")
        assert before.keys() - listing(folder).keys() == set(left)
        assert (folder / take.latents.name).exists()

    def test_a_run_that_is_being_written(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        cow = next(take for take in Run(spare(folder)).manifest.takes if "cow" in take.prompt)
        with Run(folder).locked():
            before = listing(folder)
            for command in (("prune", folder, "--yes"), ("keep", folder, 2, cow.fingerprint), ("unkeep", folder, 2, "a")):
                text = said(capsys, *command, code=1)
                assert text.startswith(f"{command[0]} failed: run 'horse' is being written by process {os.getpid()} on ")
            assert "prune --yes" in said(capsys, "prune", folder) and "sequence" in said(capsys, "show", folder)
            assert listing(folder) == before


class TestNamingATake:
    @pytest.mark.parametrize("command", ["keep", "unkeep"])
    def test_that_is_not_there(self, folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        names = ", ".join(take.fingerprint[:8] for take in Run(folder).manifest.of(1))
        text = said(capsys, command, folder, 2, "xyz", code=1)
        assert text == f"{command} failed: clip 2 has no take that begins with 'xyz': it has {names}\n"
        assert "no take that begins with ''" in said(capsys, command, folder, 2, "", code=1)
        for clip in (0, 4, -1):
            text = said(capsys, command, folder, "--", clip, "xyz", code=1)
            assert f"has no clip {clip}: it has takes of 3 clips" in text

    def test_that_may_be_several(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "run"
        run, first = Run(folder), set()
        for number in range(40):  # two of them begin alike
            first.add(save(run, 0, f"prompt {number}").fingerprint[0])
            if len(first) <= number:
                break
        (letter,) = {take.fingerprint[0] for take in run.manifest.takes[-1:]}
        assert f"several takes that begin with '{letter}'" in said(capsys, "keep", folder, 1, letter, code=1)
        assert "pinned" not in said(capsys, "show", folder)


def test_a_run_of_version_1_is_shown_and_nothing_of_it_is_pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(ROOT / "tests" / "data" / "run_of_0_1" / "node", tmp_path / "old"))
    before = listing(folder)
    text = said(capsys, "show", folder, "--check")
    assert text.count("sequence") == 3 and "every file is as it was written" in text
    assert "every take is used" in said(capsys, "prune", folder)
    assert listing(folder) == before


def test_it_runs_as_a_command(folder: Path) -> None:
    """In a terminal that shows little more than letters, from the run's own folder."""
    command = [sys.executable, "-m", "longvie_core.run", "show", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a cow number 1" in done.stdout and "horse_00001_.mp4" in done.stdout
