"""What a run tells: JSON lines for programs, and a line of text for whoever watches."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process


class JsonLines(GeneralTracker):
    """accelerate's tracker into a file: one JSON object a line, with its step."""

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        """accelerate's name for what a tracker writes to."""
        return self.path

    @on_main_process
    def store_init_configuration(self, values: dict) -> None:
        """Write the settings of a run."""
        self._write(values)

    @on_main_process
    def log(self, values: dict, step: int | None = None, **_: Any) -> None:
        """Write the figures of a step."""
        self._write({"step": step, **values})

    def _write(self, values: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class Progress:
    """Lines such as ``step 50/7300  loss 0.512  lr 2.5e-04  21.6 clips/s  0:58:12 left``.

    Args:
        first: step that the run begins or goes on with.
        last: step that it ends with.
        total: steps of the whole training.
    """

    def __init__(self, first: int, last: int, total: int) -> None:
        self.last, self.total = last, total
        self._begin = self._before = time.monotonic()
        self._first, self._clips = first, 0

    def count(self, clips: int) -> None:
        """Take note of clips that a step has trained on, in all processes."""
        self._clips += clips

    def line(self, step: int, loss: float, rates: Mapping[str, float]) -> str:
        """The line after ``step`` steps; the pace is that since the last line, the time left goes by the pace so far."""
        now = time.monotonic()
        pace = self._clips / max(now - self._before, 1e-9)
        left = (now - self._begin) / (step - self._first) * (self.last - step)
        self._before, self._clips = now, 0
        learning_rates = "  ".join(f"{name} {rate:.1e}" for name, rate in rates.items())
        remaining = timedelta(seconds=round(left))
        return f"step {step}/{self.total}  loss {loss:.4g}  {learning_rates}  {pace:.1f} clips/s  {remaining} left"
