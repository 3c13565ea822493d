"""Hashes that stand for the content of texts and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def text_sha256(text: str) -> str:
    """Hash of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_fingerprint(path: Path | None) -> str:
    """Hash of the names, sizes and times of a file, or of all files below a folder; ``"none"`` for ``None``.

    Raises:
        FileNotFoundError: there is nothing at this path.
    """
    if path is None:
        return "none"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give the path of a local file or folder, nothing is downloaded")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return text_sha256(json.dumps(stamps))
