"""What runs keep, and what of it can go: ``python -m longvie_core.run list | show | keep | unkeep | prune RUN``.

Nothing is deleted but by ``prune --yes``, and never a take that the run's sequence names, that a video which is still there is
made of, or that is kept.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from .manifest import MANIFEST, MANIFEST_COPY, Take
from .store import Run

SHORT = 8
"""Characters of a fingerprint that are shown, and are enough to name a take."""

PROMPT = 32
"""Characters of a prompt that are shown."""

_CLIP_FILE = re.compile(r"clip_\d{4,}(_[0-9a-f]+)?\.(safetensors|mp4)")
_SET_ASIDE = re.compile(r".+\.damaged-\d+")


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: there is none, or its manifest is of another version.
    """
    if not is_run(folder):
        raise ValueError(f"{folder} holds no run: give the folder that {MANIFEST} lies in")
    return Run(folder)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return any((folder / name).is_file() for name in (MANIFEST, MANIFEST_COPY))


def runs_below(folder: Path) -> list[Path]:
    """The folder itself if it is a run's, or those of the runs directly in it.

    Raises:
        ValueError: there are none.
    """
    if is_run(folder):
        return [folder]
    runs = sorted(path for path in folder.iterdir() if is_run(path)) if folder.is_dir() else []
    if not runs:
        raise ValueError(f"there is no run in {folder}: give a run's folder, or the one that the runs lie in (output/longvie)")
    return runs


def named(run: Run, clip: int, start: str) -> Take:
    """The take of a clip, counted from 1, whose fingerprint begins so.

    Raises:
        ValueError: the clip has no such take, or several.
    """
    takes = run.manifest.of(clip - 1)
    if not takes:
        clips = len({take.clip for take in run.manifest.takes})
        raise ValueError(f"{run.folder} has no clip {clip}: it has takes of {clips} {_s(clips, 'clip')}")
    found = [take for take in takes if start and take.fingerprint.startswith(start.lower())]
    if len(found) != 1:
        which = "several takes that begin" if found else "no take that begins"
        names = ", ".join(take.fingerprint[:SHORT] for take in takes)
        raise ValueError(f"clip {clip} has {which} with {start!r}: it has {names}")
    return found[0]


def spare_takes(run: Run) -> list[Take]:
    """Takes that nothing needs, by clip."""
    uses = run.uses()
    return sorted((take for take in run.manifest.takes if take.id not in uses), key=lambda take: take.clip)


def leftovers(run: Run) -> list[Path]:
    """Files that were set aside because they were damaged, and files of clips that the manifest does not know."""
    known = {file.name for take in run.manifest.takes for file in (take.latents, take.video)}
    names = (path.name for path in run.folder.iterdir() if path.is_file())
    left = (name for name in names if _SET_ASIDE.fullmatch(name) or (_CLIP_FILE.fullmatch(name) and name not in known))
    return [run.folder / name for name in sorted(left)]


# ---- commands


def list_runs(folder: Path) -> int:
    """A line a run."""
    rows = [("run", "clips", "takes", "size", "age", "videos")]
    for path in runs_below(folder):
        try:
            run = open_run(path)
        except ValueError as error:
            rows.append((path.name, "", "", "", "", str(error)))
            continue
        takes = run.manifest.takes
        size = sum(_size(run, take) for take in takes)
        age = min((_age(run, take) for take in takes), default=None)
        videos = [video for video in run.manifest.videos if run.path(video.file).is_file()]
        clips = str(len(run.manifest.sequence))
        rows.append((path.absolute().name, clips, str(len(takes)), _mib(size), _in_words(age), str(len(videos))))
    _table(rows)
    return 0


def show(folder: Path, check: bool) -> int:
    """The takes of each clip; with ``check`` every byte of theirs is read, and the exit code is 1 where one is damaged."""
    run = open_run(folder)
    uses, wrong = run.uses(), []
    rows = [("clip", "take", "size", "age", "rendered in", "seed", "prompt", "used by")]
    for clip in sorted({take.clip for take in run.manifest.takes}):
        for take in run.manifest.of(clip):
            row = (str(clip + 1), take.fingerprint[:SHORT], _mib(_size(run, take)), _in_words(_age(run, take)))
            seed = "" if take.seed is None else str(take.seed)
            used = ", ".join(uses.get(take.id, ["nothing"]))
            rows.append((*row, f"{take.seconds:.1f} s", seed, _beginning(take.prompt), used))
            damages = (run.damage(file, full=True) for file in (take.latents, take.video)) if check else ()
            wrong += [f"clip {clip + 1}, take {take.fingerprint[:SHORT]}: {damage}" for damage in damages if damage]
    _table(rows)
    left = leftovers(run)
    if left:
        _say(f"{len(left)} {_s(len(left), 'file')} beside the takes: prune lists them")
    if check:
        _say("\n".join(wrong) or "every file is as it was written")
    return 1 if wrong else 0


def keep(folder: Path, clip: int, start: str, pinned: bool) -> int:
    """Keep a take whatever is pruned, or no longer."""
    with open_run(folder).locked() as run:
        take = named(run, clip, start)
        run.pin(take, pinned)
    _say(f"clip {clip}, take {take.fingerprint[:SHORT]}: {'kept until unkeep' if pinned else 'no longer kept'}")
    return 0


def prune(folder: Path, yes: bool) -> int:
    """Show what nothing needs; with ``yes`` it is deleted."""
    if not yes:
        return _show_spare(open_run(folder))
    with open_run(folder).locked() as run:
        _show_spare(run, deleted=True)
        left = leftovers(run)
        run.remove(spare_takes(run))
        for path in left:
            path.unlink()
    return 0


def _show_spare(run: Run, deleted: bool = False) -> int:
    takes, left = spare_takes(run), leftovers(run)
    if not takes and not left:
        _say(f"{run.folder}: every take is used, and nothing else lies there")
        return 0
    rows = [("clip", "take", "size", "age", "seed", "prompt")]
    for take in takes:
        seed = "" if take.seed is None else str(take.seed)
        row = (str(take.clip + 1), take.fingerprint[:SHORT], _mib(_size(run, take)), _in_words(_age(run, take)))
        rows.append((*row, seed, _beginning(take.prompt)))
    if takes:
        _say("takes that no video, the last queue and no keep needs:")
        _table(rows)
    if left:
        _say(f"files that {MANIFEST} does not know, or that were set aside as damaged:")
        _table([(path.name, _mib(path.stat().st_size), _in_words(_since(path.stat().st_mtime))) for path in left])
    size = sum(_size(run, take) for take in takes) + sum(path.stat().st_size for path in left)
    what = f"{len(takes)} {_s(len(takes), 'take')} and {len(left)} {_s(len(left), 'file')}, {_mib(size)}"
    _say(f"{what}: deleted" if deleted else f"{what}: prune --yes deletes them for good")
    return 0


# ---- words


def _size(run: Run, take: Take) -> int:
    """Bytes of a take's files as they are on disk."""
    paths = (run.path(take.latents), run.path(take.video))
    return sum(path.stat().st_size for path in paths if path.is_file())


def _age(run: Run, take: Take) -> float:
    """Seconds since a take was finished; by its files where nobody wrote that down."""
    try:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(take.created)).total_seconds()
    except (ValueError, TypeError):  # version 1, or without a time zone
        path = run.path(take.latents)
        return _since(path.stat().st_mtime) if path.is_file() else float("inf")


def _since(moment: float) -> float:
    return time.time() - moment


def _in_words(seconds: float | None) -> str:
    if seconds is None or seconds == float("inf"):
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _s(count: int, one: str) -> str:
    return one if count == 1 else f"{one}s"


def _beginning(prompt: str) -> str:
    text = "".join(character if character.isprintable() else " " for character in " ".join(prompt.split()))
    return text if len(text) <= PROMPT else f"{text[: PROMPT - 1]}…"


def _table(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _say(text: str) -> None:
    """Print text, with question marks for what the terminal cannot show."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m longvie_core.run", description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, what: str = "folder of the run") -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("run", type=Path, metavar="RUN", help=what)
        return added

    command("list", "clips, takes, size, age and videos of runs", "folder of a run, or the one that runs lie in")
    added = command("show", "the takes of each clip, and what uses them")
    added.add_argument("--check", action="store_true", help="read every byte: is each file as it was written?")
    for name, text in (("keep", "keep a take whatever is pruned"), ("unkeep", "no longer keep a take")):
        added = command(name, text)
        added.add_argument("clip", type=int, metavar="CLIP", help="number of the clip, from 1")
        added.add_argument("take", metavar="TAKE", help="beginning of the take's fingerprint, as show prints it")
    added = command("prune", "show takes and files that nothing needs, and delete them if told to")
    added.add_argument("--yes", action="store_true", help="delete them for good")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "list":
            return list_runs(options.run)
        if options.command == "show":
            return show(options.run, options.check)
        if options.command == "prune":
            return prune(options.run, options.yes)
        return keep(options.run, options.clip, options.take, options.command == "keep")
    except (ValueError, OSError) as error:
        print(f"{options.command} failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
