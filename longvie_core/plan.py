"""Which frames belong to which clip (section 3.1 of LongVie, arXiv 2508.03694, and of LongVie 2, arXiv 2512.13604).

Pure arithmetic, no pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction

from .finite import finite

TAIL_RULES = ("drop", "pad")

VAE_TIME_STRIDE = 4
"""Frames that one latent frame of the Wan VAE stands for, after the first."""

VAE_SPACE_STRIDE = 8
"""Pixels a side that one latent pixel stands for."""

SIZE_MULTIPLE = 2 * VAE_SPACE_STRIDE
"""Width and height are multiples of the VAE's stride times the backbone's patch size, 2."""


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of ``frames`` pictures: ``1 + (frames - 1) // 4``."""
    return 1 + (frames - 1) // VAE_TIME_STRIDE


@dataclass(frozen=True)
class ClipPlan:
    """How a video of ``source_frames`` control frames is cut into overlapping clips.

    Clip ``i`` covers control frames ``stride*i .. stride*i + frames - 1`` with ``stride = frames - overlap``; the papers'
    numbers are 81 frames, overlap 1, 640x352 at 16 fps. What the whole clips leave over is dropped (``tail="drop"``, as the
    reference does) or filled up by repeating the last control frame and cut off again from the result (``tail="pad"``).

    Args:
        width, height: size of the generated video in pixels, multiples of 16.
        frames: frames a clip, ``4n + 1`` and at least 5.
        fps: frames per second of controls and result.
        overlap: frames that neighbouring clips share, at least 1 and less than ``frames``.
        tail: ``"drop"`` or ``"pad"``.
        source_frames: length of the control video in frames; 0 = not known yet (see :meth:`resolved`).

    Raises:
        ValueError: naming the field, its value and the mend.
    """

    width: int = 640
    height: int = 352
    frames: int = 81
    fps: Fraction = Fraction(16)
    overlap: int = 1
    tail: str = "drop"
    source_frames: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "height"):
            value = getattr(self, name)
            if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
                lower = max(SIZE_MULTIPLE, value - value % SIZE_MULTIPLE)
                raise ValueError(f"{name} {value} is not a multiple of {SIZE_MULTIPLE}: use {lower} or {lower + SIZE_MULTIPLE}")
        if self.frames < 5 or (self.frames - 1) % VAE_TIME_STRIDE:
            lower = max(5, self.frames - (self.frames - 1) % VAE_TIME_STRIDE)
            raise ValueError(
                f"frames per clip {self.frames} is not 4n+1 (the video VAE packs 4 frames into one latent): "
                f"use {lower} or {lower + VAE_TIME_STRIDE}"
            )
        finite(fps=self.fps)
        if self.fps <= 0:
            raise ValueError(f"fps {self.fps} is not positive: the reference uses 16")
        if not 1 <= self.overlap < self.frames:
            raise ValueError(
                f"overlap {self.overlap} is outside 1 .. {self.frames - 1}: the reference shares 1 frame between clips"
            )
        if self.tail not in TAIL_RULES:
            raise ValueError(f"tail rule {self.tail!r} is not one of {', '.join(TAIL_RULES)}")
        if self.source_frames < 0:
            raise ValueError(f"source_frames {self.source_frames} is negative: give the control video's length, or 0")
        if self.source_frames and self.tail == "drop" and self.source_frames < self.frames:
            raise ValueError(
                f"the control video has {self.source_frames} frames, but one clip needs {self.frames}: give a longer video, "
                "choose fewer frames per clip, or set the tail rule to 'pad'"
            )

    def resolved(self, control_frames: int) -> ClipPlan:
        """The plan with its source length known: its own, or ``control_frames`` where it was left at 0.

        Raises:
            ValueError: the controls are shorter than the plan says.
        """
        if self.source_frames == 0:
            return replace(self, source_frames=control_frames)
        if control_frames < self.source_frames:
            raise ValueError(
                f"the plan says {self.source_frames} source frames, but the control has only {control_frames}: "
                "correct the plan, or set its source length to 0 (= as long as the controls)"
            )
        return self

    @property
    def stride(self) -> int:
        """Frames from the start of one clip to the start of the next."""
        return self.frames - self.overlap

    @property
    def clips(self) -> int:
        """Number of clips."""
        rest = self.source_frames - self.frames
        whole = 1 + rest // self.stride if rest >= 0 else 0
        if self.tail == "pad" and self.source_frames and self.source_frames > self.stitched_frames(whole):
            return whole + 1
        return whole

    @property
    def latent_frames(self) -> int:
        """Latent frames a clip."""
        return latent_frames(self.frames)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Latent (height, width) in latent pixels."""
        return self.height // VAE_SPACE_STRIDE, self.width // VAE_SPACE_STRIDE

    @property
    def output_frames(self) -> int:
        """Frames of the stitched video: each shared frame once, padding cut off."""
        return min(self.stitched_frames(self.clips), self.source_frames)

    def stitched_frames(self, clips: int) -> int:
        """Frames of ``clips`` clips joined with each shared frame shown once: ``overlap + stride * clips``."""
        return self.overlap + self.stride * clips if clips else 0

    def control_frames(self, clip: int) -> range:
        """Control frame numbers of clip ``clip``; with ``tail="pad"`` those past the end repeat the last frame."""
        self._check(clip)
        return range(self.stride * clip, self.stride * clip + self.frames)

    def kept_frames(self, clip: int) -> range:
        """Frame numbers *within* clip ``clip`` that the stitched video takes from it.

        The first clip gives all its frames; every later clip leaves out the shared ones, which the clip before it gave.
        """
        self._check(clip)
        start = 0 if clip == 0 else self.overlap
        past_end = max(0, self.stride * clip + self.frames - self.source_frames)
        return range(start, self.frames - past_end)

    def _check(self, clip: int) -> None:
        if not 0 <= clip < self.clips:
            raise ValueError(f"clip {clip + 1} is outside the plan's clips 1 .. {self.clips}")
