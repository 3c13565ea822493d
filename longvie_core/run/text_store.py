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
        dtype, device: that it runs in and on.
        fingerprint: of the encoder; by default of its files' names, sizes and times.

    Raises:
        FileNotFoundError: no such encoder.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Path | None,
        dtype: torch.dtype,
        device: str | torch.device,
        fingerprint: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.dtype, self.device = dtype, device
        self._store = EmbeddingStore(folder, files_fingerprint(encoder) if fingerprint is None else fingerprint)

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Those that have to be encoded, each once."""
        return [] if self.encoder is None else self._store.missing(texts)

    def encode(self, texts: Sequence[str]) -> None:
        """Encode and keep; the encoder is gone from memory afterwards."""
        if not texts or self.encoder is None:
            return
        from ..backends.diffusers.encoders import TextEncoder
        from ..backends.processes import release_memory

        encoder = TextEncoder(self.encoder, dtype=self.dtype, device=self.device)
        for text in texts:
            self._store.write(text, encoder(text))
        del encoder
        gc.collect()
        release_memory()

    def read(self, text: str) -> Tensor | None:
        """Embedding [1, L, width], encoded again where its file is damaged; ``None`` without an encoder."""
        if self.encoder is None:
            return None
        embedding = self._store.read(text)
        if embedding is None:
            self.encode([text])
            embedding = self._store.read(text)
        return embedding
