"""Text embeddings of an encoder in a local folder: each text encoded once, kept on disk, the encoder gone afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..disk.fingerprints import files_fingerprint
from .text_embeddings import EmbeddingStore


class TextStore:
    """Text embeddings on disk, each text encoded once for all runs in this folder.

    Args:
        folder: where.
        encoder: local folder of umT5; ``None`` = no text, whatever the prompts say.

    Raises:
        FileNotFoundError: no such encoder.
    """

    def __init__(self, folder: Path, encoder: Path | None) -> None:
        self.encoder = encoder
        self._store = EmbeddingStore(folder, files_fingerprint(encoder))

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those that have to be encoded, each once."""
        return [] if self.encoder is None else self._store.missing(texts)

    def encode(self, texts: Sequence[str], dtype: torch.dtype, device: str | torch.device) -> None:
        """Encode and keep; the encoder is gone from memory afterwards."""
        if not texts:
            return
        from ..backends.diffusers.encoders import TextEncoder
        from ..backends.diffusers.processes import release_memory

        encoder = TextEncoder(self.encoder, dtype=dtype, device=device)
        for text in texts:
            self._store.write(text, encoder(text))
        del encoder
        gc.collect()
        release_memory()

    def read(self, text: str, width: int) -> Tensor:
        """Embedding [1, L, width]; without an encoder one zero token, which attends like any number of them."""
        return torch.zeros(1, 1, width) if self.encoder is None else self._store.read(text)
