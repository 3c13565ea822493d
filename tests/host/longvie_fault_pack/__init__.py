"""Makes writing go wrong at a chosen moment: what a test asks for in the file that LONGVIE_FAULT names.

The file holds JSON: ``file`` (its name, with ``*``), ``time`` (the n-th one of such a name to be renamed into place, counted
from 1 since the file was written), ``when`` ("before" or "after" the rename) and ``what``: "kill" this process, "tear" the file
in half and kill, "full" (the disk), or "wait" for as long as the file is there.
"""

from __future__ import annotations

import errno
import json
import os
import time
from fnmatch import fnmatchcase
from pathlib import Path

NODE_CLASS_MAPPINGS: dict[str, type] = {}

REQUEST = Path(os.environ["LONGVIE_FAULT"])
counts: dict[str, int] = {}
rename = os.replace


def replace(source: str | Path, target: str | Path, **options: int) -> None:
    """os.replace, with what was asked for before or after it."""
    act(Path(source), Path(target), "before")
    rename(source, target, **options)
    act(Path(target), Path(target), "after")


def act(written: Path, target: Path, when: str) -> None:
    text = REQUEST.read_text("utf-8") if REQUEST.exists() else ""
    fault = json.loads(text) if text else {}
    if fault.get("when") != when or not fnmatchcase(target.name, fault["file"]):
        return
    counts[text] = counts.get(text, 0) + 1
    if counts[text] != fault["time"]:
        return
    if fault["what"] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(written))
    while fault["what"] == "wait" and REQUEST.exists():
        time.sleep(0.02)
    if fault["what"] == "tear":
        os.truncate(written, written.stat().st_size // 2)
    if fault["what"] in ("kill", "tear"):
        os.kill(os.getpid(), 9)  # SIGKILL; Windows does not know the name, but ends the process all the same


os.replace = replace
