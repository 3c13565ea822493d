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
    def to(cls, take: Take, former: str = "") -> Link:
        """The link that a take is."""
        return cls(take.fingerprint, take.tail, former)


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


Read = Callable[[], Manifest]
"""The manifest as it is now: looking at a file may renew what is known of it."""


def find(read: Read, clip: int, key: ClipKey, link: Link, damage: Damage) -> tuple[Take | None, Take | None, list[str]]:
    """The newest take of a clip that fits a key after the take before it.

    Returns:
        The take as it is there; the same under today's fingerprint; what is wrong with takes that would fit but are damaged.
    """
    damages: list[str] = []
    for take in read().of(clip):
        previous = {link.fingerprint, link.former} - {""} or {""}
        if not any(key.matches(take.fingerprint, before) for before in previous):
            continue
        if UNKNOWN not in (take.start, link.tail) and take.start != link.tail:
            damages.append("the clip before it is not bit by bit what it was")
            continue
        if wrong := damage(take.latents):
            damages.append(wrong)
            continue
        damage(take.video)
        current = next(other for other in read().of(clip) if other.fingerprint == take.fingerprint)
        return current, replace(current, fingerprint=key.fingerprint(link.fingerprint), parts=dict(key.parts)), damages
    return None, None, damages


def decide(read: Read, keys: Sequence[ClipKey], fixed: int, damage: Damage) -> Decision:
    """Look for takes that fit, clip by clip.

    A take that has to be rendered again because its latents are lost is expected to come out as it was, so what follows it is
    kept for now; rendering looks again (:func:`longvie_core.run.render.render`).

    Args:
        read: gives the run's manifest.
        keys: of all clips that are wanted.
        fixed: this many leading clips are kept even where they were made with other settings.
        damage: says what is wrong with a file.

    Raises:
        ValueError: one of the fixed clips is missing or damaged.
    """
    takes: list[Take | None] = []
    relabelled: list[tuple[Take, Take]] = []
    notes: list[str] = []
    damaged: dict[int, str] = {}
    changes: dict[int, str] = {}
    again: list[int] = []
    link = Link()
    for clip, key in enumerate(keys):
        before = read().sequence[clip : clip + 1]
        last = next((take for take in read().of(clip) if (take.fingerprint,) == before), None)
        take, current, damages = find(read, clip, key, link, damage)
        if take is None and clip < fixed:
            current = _fixed(clip, key, last, damage, notes)
            take = current
        if take is not None and current is not None:
            if current.fingerprint != take.fingerprint:
                relabelled.append((take, current))
            if last is not None and take.fingerprint != last.fingerprint:
                again.append(clip)
            if wrong := damage(take.video):
                notes.append(f"clip {clip + 1}: its video is made again from its latents, since {wrong}")
            takes.append(current)
            link = Link.to(current, take.fingerprint if take.fingerprint != current.fingerprint else "")
            continue
        takes.append(None)
        if damages:
            damaged[clip] = damages[0]
        elif last is not None:
            groups, members = in_words(key.changed(last.parts))
            changes[clip] = f"{groups or 'an earlier clip'} changed{members}"
        link = Link(key.fingerprint(link.fingerprint))
    found_again = [f"clips {first + 1} .. {last + 1}: earlier takes are used again" for first, last in _rows(again)]
    pending = [clip for clip, take in enumerate(takes) if take is None]
    reasons = (*notes, *found_again, *_why(pending, damaged, changes))
    return Decision(tuple(takes), reasons, tuple(relabelled))


def _fixed(clip: int, key: ClipKey, last: Take | None, damage: Damage, notes: list[str]) -> Take:
    """The take of a clip that is kept whatever it was made with."""
    if last is None:
        raise ValueError(f"clip {clip + 1} is not finished in this run yet: start the range at clip {clip + 1}")
    if wrong := damage(last.latents):
        raise ValueError(f"clip {clip + 1} must be kept, but {wrong}: start the range at clip {clip + 1}")
    groups, members = in_words(key.changed(last.parts))
    notes.append(f"clip {clip + 1} is kept although it was made with another {groups or 'earlier clip'}{members}")
    return last


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
