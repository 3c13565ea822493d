"""Per-clip prompts: plain lines or JSON (P2 section 3.1: each clip has a caption of its own)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..model.clip import ClipStrengths

REFERENCE_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，"
    "画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""Wan's stock negative prompt, which the reference uses."""


MAX_STRENGTH = 10.0
"""Largest control strength that is offered; trained at 1."""

KEYS = ("prompt", "negative", "seed_offset", "dense_strength", "sparse_strength")
"""What an entry of a JSON schedule may hold."""


@dataclass(frozen=True)
class ClipPrompt:
    """What one clip is told.

    Args:
        text: the prompt.
        negative: negative prompt; ``None`` = the schedule's.
        seed_offset: added to the noise seed for this clip alone; 0 = the shared noise.
        strengths: of the controls.
    """

    text: str
    negative: str | None = None
    seed_offset: int = 0
    strengths: ClipStrengths = field(default_factory=ClipStrengths)


def parse_prompts(text: str) -> tuple[ClipPrompt, ...]:
    """Read a prompt schedule.

    Plain text is one prompt a line, empty lines skipped. Text that starts with ``[`` is a JSON list, one entry a clip: a
    string, or an object with ``prompt`` and optionally ``negative``, ``seed_offset``, ``dense_strength`` and
    ``sparse_strength``; a prompt may then hold line breaks.

    Returns:
        At least one prompt; a clip beyond the last repeats the last.

    Raises:
        ValueError: broken JSON or an entry of the wrong kind, named by its number from 1.
    """
    if text.lstrip().startswith("["):
        return _parse_json(text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, start=1):
        check_characters(f"prompt {number}", line)
    return tuple(ClipPrompt(line) for line in lines) or (ClipPrompt(""),)


def _parse_json(text: str) -> tuple[ClipPrompt, ...]:
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"prompts start with '[' but are no JSON list ({error}): write one prompt a line, or a list of strings"
        ) from error
    if not entries:
        raise ValueError("prompts are an empty JSON list: give one entry a clip, or plain text")
    return tuple(_parse_entry(number, entry) for number, entry in enumerate(entries, start=1))


def _parse_entry(number: int, entry: object) -> ClipPrompt:
    if isinstance(entry, str):
        entry = {"prompt": entry}
    if not isinstance(entry, dict):
        raise ValueError(f"prompt {number} is a {type(entry).__name__}: give a string or an object with 'prompt'")
    unknown = entry.keys() - set(KEYS)
    if unknown:
        raise ValueError(f"prompt {number} has an unknown key {min(unknown)!r}: use {', '.join(KEYS)}")
    text, negative, offset = entry.get("prompt"), entry.get("negative"), entry.get("seed_offset", 0)
    if not isinstance(text, str):
        raise ValueError(f"prompt {number} has no text under 'prompt'")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"prompt {number}: 'negative' must be a string")
    check_characters(f"prompt {number}", text + (negative or ""))
    if not isinstance(offset, int) or isinstance(offset, bool):
        raise ValueError(f"prompt {number}: 'seed_offset' must be a whole number")
    strengths = ClipStrengths(*(_strength(number, entry, name) for name in ("dense_strength", "sparse_strength")))
    return ClipPrompt(text, negative, offset, strengths)


def _strength(number: int, entry: dict, name: str) -> float | None:
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_STRENGTH:
        raise ValueError(
            f"prompt {number}: {name!r} must be a number from 0 to {MAX_STRENGTH:g}; leave it out for the sampler's"
        )
    return float(value)


def check_characters(name: str, text: str) -> None:
    """Refuse text that cannot be written as UTF-8.

    Raises:
        ValueError: naming the text.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half of a surrogate pair (\\ud800 .. \\udfff): write the whole character")


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of a video.

    Args:
        prompts: one entry a clip; the last repeats.
        negative: negative prompt of clips that have none of their own.
    """

    prompts: tuple[ClipPrompt, ...] = (ClipPrompt(""),)
    negative: str = ""

    def of(self, clip: int) -> ClipPrompt:
        """Prompt of a clip; clips beyond the last prompt repeat the last."""
        return self.prompts[min(clip, len(self.prompts) - 1)]

    def texts(self, clip: int) -> tuple[str, str]:
        """Positive and negative text of a clip."""
        prompt = self.of(clip)
        return prompt.text, self.negative if prompt.negative is None else prompt.negative

    def distinct(self, clips: Iterable[int]) -> list[str]:
        """All texts of these clips, each once, in the order in which they are needed."""
        return list(dict.fromkeys(text for clip in clips for text in self.texts(clip)))
