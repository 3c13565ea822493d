"""Which takes of a run are what is wanted now: decided before anything is rendered, and said in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from .keys import ClipKey, in_words
from .manifest import UNKNOWN, Manifest, StoredFile, Take

Damage = Callable[[StoredFile], str]
"""What is wrong with a file, in words; empty where nothing is."""


@dataclass(frozen=True)
class Link:
    """The take before a clip, as the clip's own fingerprint sees it.

    Args:
        fingerprint: of that take; empty for the first clip.
        tail: hash of the tail that it left; ``UNKNOWN`` where it is not known.
        former: fingerprint under which an earlier version wrote it, where that differs.
    """

    fingerprint: str = ""
    tail: str = UNKNOWN
    former: str = ""

    @classmethod
    def to(cls, take: Take) -> Link:
        """The link that a take is."""
        return cls(take.fingerprint, take.tail, take.former)


@dataclass(frozen=True)
class Decision:
    """What becomes of each wanted clip.

    Args:
        takes: the take that is kept, clip by clip; ``None`` where it is rendered.
        reasons: in words.
        relabelled: takes that an earlier version wrote, as they are there and under today's fingerprint.
    """

    takes: tuple[Take | None, ...]
    reasons: tuple[str, ...]
    relabelled: tuple[tuple[Take, Take], ...] = ()

    @property
    def kept(self) -> int:
        """How many clips are kept."""
        return sum(take is not None for take in self.takes)

    @property
    def pending(self) -> tuple[int, ...]:
        """Clips that are rendered."""
        return tuple(clip for clip, take in enumerate(self.takes) if take is None)


@dataclass(frozen=True)
class Found:
    """A take that fits a key.

    Args:
        there: as the manifest has it.
        take: the same under today's fingerprint.
        damage: why it has to be rendered again all the same, in words; empty where it can be kept.
    """

    there: Take
    take: Take
    damage: str = ""


def find(manifest: Manifest, clip: int, key: ClipKey, link: Link, damage: Damage) -> Found | None:
    """The newest take of a clip that fits a key after the take before it; a damaged one only where no other fits."""
    previous = {link.fingerprint, link.former} - {""} or {""}
    damaged: Found | None = None
    for there in manifest.of(clip):
        if not any(key.matches(there.fingerprint, before) for before in previous):
            continue
        today = key.fingerprint(link.fingerprint)
        former = there.former if there.fingerprint == today else there.fingerprint
        take = replace(there, fingerprint=today, parts=dict(key.parts), former=former)
        if UNKNOWN not in (there.start, link.tail) and there.start != link.tail:
            wrong = "the clip before it is not bit by bit what it was"
        else:
            wrong = damage(there.latents)
        if not wrong:
            return Found(there, take)
        damaged = damaged or Found(there, take, wrong)
    return damaged


def decide(manifest: Manifest, keys: Sequence[ClipKey], fixed: int, damage: Damage) -> Decision:
    """Look for takes that fit, clip by clip.

    A take that has to be rendered again because its latents are lost is expected to come out as it was, so what follows it is
    kept for now; rendering looks again (:func:`longvie_core.run.render.render`).

    Args:
        manifest: of the run.
        keys: of all clips that are wanted.
        fixed: this many leading clips are kept even where they were made with other settings.
        damage: says what is wrong with a file.

    Raises:
        ValueError: one of the fixed clips is missing or damaged.
    """
    takes: list[Take | None] = []
    relabelled: list[tuple[Take, Take]] = []
    damaged: dict[int, str] = {}
    changes: dict[int, str] = {}
    again: list[int] = []
    leading, notes = _fixed(manifest, keys[:fixed], damage)
    link = Link()
    for clip, key in enumerate(keys):
        last = manifest.wanted(clip)
        found = leading[clip] if clip < fixed else find(manifest, clip, key, link, damage)
        if found is not None and found.take.fingerprint != found.there.fingerprint:
            relabelled.append((found.there, found.take))
        link = Link(key.fingerprint(link.fingerprint)) if found is None else Link.to(found.take)
        if found is not None and not found.damage:
            takes.append(found.take)
            if last is not None and found.there.id != last.id:
                again.append(clip)
            if wrong := damage(found.there.video):
                notes.append(f"clip {clip + 1}: its video is made again from its latents, since {wrong}")
            continue
        takes.append(None)
        if found is not None:
            damaged[clip] = found.damage
        elif last is not None:
            groups, members = in_words(key.changed(last.parts))
            changes[clip] = f"{groups or 'an earlier clip'} changed{members}"
    found_again = [f"clips {first + 1} .. {last + 1}: earlier takes are used again" for first, last in _rows(again)]
    pending = [clip for clip, take in enumerate(takes) if take is None]
    reasons = (*notes, *found_again, *_why(pending, damaged, changes))
    return Decision(tuple(takes), reasons, tuple(relabelled))


def _fixed(manifest: Manifest, keys: Sequence[ClipKey], damage: Damage) -> tuple[list[Found], list[str]]:
    """Takes of clips that are kept whatever they were made with, and in words where that is not what is wanted.

    They are those that fit, if all of them do; or else those of the run's sequence, with what fits after them. Never some of
    these and some of those: each has to start where the one before it ends.
    """
    fitting: list[Found] = []
    link = Link()
    for clip, key in enumerate(keys):
        found = find(manifest, clip, key, link, damage)
        if found is None or found.damage:
            break
        fitting.append(found)
        link = Link.to(found.take)
    else:
        return fitting, []
    kept: list[Found] = []
    notes: list[str] = []
    link = Link()
    for clip, key in enumerate(keys):
        found, last = find(manifest, clip, key, link, damage), manifest.wanted(clip)
        if last is not None and (found is None or found.there.id != last.id):
            found = Found(last, last, damage(last.latents))
            groups, members = in_words(key.changed(last.parts))
            notes.append(f"clip {clip + 1} is kept although it was made with another {groups or 'earlier clip'}{members}")
        if found is None:
            raise ValueError(f"clip {clip + 1} is not finished in this run yet: start the range at clip {clip + 1}")
        if found.damage:
            raise ValueError(f"clip {clip + 1} must be kept, but {found.damage}: start the range at clip {clip + 1}")
        kept.append(found)
        link = Link.to(found.take)
    return kept, notes


def _why(pending: Sequence[int], damages: Mapping[int, str], changes: Mapping[int, str]) -> Iterator[str]:
    """Why clips are rendered: a line for each whose files are damaged, and one for each row of neighbours that changed."""
    for first, last in _rows(pending):
        clip = first
        while clip <= last and clip in damages:
            yield f"clip {clip + 1} is rendered again: {damages[clip]}"
            clip += 1
        if clip <= last and clip in changes:
            yield f"clips {clip + 1} .. {last + 1} are rendered again: {changes[clip]}"


def _rows(clips: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each row of consecutive numbers."""
    rows: list[list[int]] = []
    for clip in clips:
        if rows and rows[-1][-1] == clip - 1:
            rows[-1].append(clip)
        else:
            rows.append([clip])
    yield from ((row[0], row[-1]) for row in rows)


def expected_seconds(manifest: Manifest, clips: int) -> float | None:
    """How long rendering so many clips will take, by the seconds of earlier takes; ``None`` where there are none."""
    seconds = [take.seconds for take in manifest.takes]
    return clips * median(seconds) if seconds and clips else None
