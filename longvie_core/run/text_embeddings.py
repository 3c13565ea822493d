"""Text embeddings on disk: each text is encoded once for all runs that share a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..disk.atomic import write_atomically
from ..disk.fingerprints import text_sha256


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
        """Those that are not there, each once."""
        return [text for text in dict.fromkeys(texts) if not self._path(text).is_file()]

    def write(self, text: str, embedding: Tensor) -> None:
        """Keep the embedding [1, L, width] of a text."""
        self.folder.mkdir(exist_ok=True)
        write_atomically(self._path(text), lambda part: save_file({"text": embedding.cpu().contiguous()}, part))

    def read(self, text: str) -> Tensor:
        """The embedding of a text that is there."""
        return load_file(self._path(text))["text"]

    def _path(self, text: str) -> Path:
        return self.folder / f"{text_sha256(f'{self.encoder}{chr(10)}{text}')[:32]}.safetensors"
