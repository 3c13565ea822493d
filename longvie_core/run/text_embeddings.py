"""Text embeddings on disk: each text is encoded once for all runs that share a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from ..disk.fingerprints import text_sha256
from ..disk.tensors import claims_tensors, read_tensors, write_tensors


class EmbeddingStore:
    """Embeddings named by their text and by what encodes it.

    Args:
        folder: made when the first one is written.
        encoder: fingerprint of the text encoder.
    """

    def __init__(self, folder: Path, encoder: str) -> None:
        self.folder = folder
        self.encoder = encoder

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those that are not there, or not whole, each once; what the files hold is not read."""
        return [text for text in dict.fromkeys(texts) if not claims_tensors(self._path(text))]

    def write(self, text: str, embedding: Tensor) -> None:
        """Keep the embedding [1, L, width] of a text."""
        self.folder.mkdir(exist_ok=True)
        write_tensors(self._path(text), {"text": embedding})

    def read(self, text: str) -> Tensor | None:
        """The embedding of a text; ``None`` where it is not there or damaged."""
        return (read_tensors(self._path(text)) or {}).get("text")

    def _path(self, text: str) -> Path:
        return self.folder / f"{text_sha256(f'{self.encoder}{chr(10)}{text}')[:32]}.safetensors"
