"""What users type: names of runs, and ranges of clips."""

from __future__ import annotations

import re

MAX_NAME = 100

MAX_NAME_BYTES = 200
"""File systems count bytes; some of the 255 that they allow are left for what a host adds."""

_DEVICE_NAMES = re.compile(r"(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9¹²³])\s*(\..*)?", re.IGNORECASE)


def check_run_name(name: str) -> str:
    """A run name that is one plain folder name on every system.

    Raises:
        ValueError: naming what is wrong with it.
    """
    if not name or len(name) > MAX_NAME:
        raise ValueError(f"run name has {len(name)} characters: use 1 to {MAX_NAME}")
    if len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise ValueError(f"run name is too long for a folder ({len(name.encode(errors='replace'))} bytes): use a shorter one")
    bad = sorted({character for character in name if character in '/\\:*?"<>|' or not character.isprintable()})
    if bad:
        raise ValueError(f"run name {name!r} holds {', '.join(map(repr, bad))}: use letters, digits, spaces, '-', '_' and '.'")
    if name.startswith((".", " ")) or name.endswith((".", " ")):
        raise ValueError(f"run name {name!r} starts or ends with a dot or space: use a plain folder name")
    if _DEVICE_NAMES.fullmatch(name):
        raise ValueError(f"run name {name!r} is a device name on Windows: choose another")
    return name


def clip_range(text: str, clips: int | None) -> range:
    """Which clips to render, from text that counts from 1: empty = all, ``3``, ``3-5``, ``4-``, ``-2``.

    Args:
        text: as above.
        clips: number of clips there are; ``None`` checks the text alone.

    Returns:
        Clip numbers from 0.

    Raises:
        ValueError: not such a text, or outside the clips there are.
    """
    match = re.fullmatch(r"\s*(?:(\d{1,6})|(\d{1,6})?\s*-\s*(\d{1,6})?)?\s*", text)
    if match is None:
        raise ValueError(f"clips {text!r} is no range: leave it empty for all, or write 3, 3-5, or 4-")
    single, first, last = (int(group) if group else None for group in match.groups())
    start, stop = (single, single) if single is not None else (1 if first is None else first, last)
    if start < 1 or (stop is not None and stop < start):
        raise ValueError(f"clips {text!r} is an empty range: clips count from 1, the smaller number first")
    if clips is None:
        return range(start - 1, stop or start)
    stop = clips if stop is None else stop
    if not start <= stop <= clips:
        raise ValueError(f"clips {text!r} is outside the {clips} clips of this plan")
    return range(start - 1, stop)
