"""A clip whose numbers broke on the way is refused before anybody sees it: every later clip would start from it.

Overflow of float16, damaged weights and too high a guidance scale end as NaN, as infinities, or, since video decoders cut off
what is below black and above white, as pictures of one colour or of nothing but black and white.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

MENDS = {
    "VAE": "the VAE overflows in float16 (run it in bfloat16 or float32), or its file is damaged (copy or download it again)",
    "sampling": "the model overflows in float16 (load it in bfloat16 or float32), a weight file of the model, an overlay, a "
    "LoRA or the control network is damaged (copy or download it again), or cfg or a control strength is too high",
}


def checked_latents(latents: Tensor, clip: int, step: str, causes: str = "VAE") -> Tensor:
    """The same latents, all of them finite.

    Args:
        latents: of any shape.
        clip: its number, from 0.
        step: of the work, for the message: "sampling", "encoding its dense control".
        causes: which of ``MENDS`` are likely.

    Raises:
        ValueError: naming the clip, the step, how many numbers are broken, and the likely causes.
    """
    finite = latents.isfinite()
    if not finite.all():
        broken = latents.numel() - int(finite.sum())
        raise _broken(clip, step, f"gave {broken} of {latents.numel()} latent values that are not finite", MENDS[causes])
    return latents


def check_pixels(pixels: np.ndarray, clip: int) -> None:
    """Refuse decoded float pixels [T, H, W, 3] with values that are not finite.

    Raises:
        ValueError: as :func:`checked_latents`.
    """
    # The smallest and the largest are NaN where any value is, and need no mask as large as the clip.
    if not np.isfinite((pixels.min(), pixels.max())).all():
        broken = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        raise _broken(clip, "decoding", f"gave {broken} of {pixels.size} pixel values that are not finite", MENDS["VAE"])


def check_pictures(frames: np.ndarray, start: np.ndarray, clip: int) -> None:
    """Refuse a clip that shows nothing although it starts from a picture that shows something.

    Args:
        frames: uint8 [T, H, W, 3].
        start: the picture that it starts from, uint8 [H, W, 3].

    Raises:
        ValueError: all frames are of one colour each, or of nothing but the darkest and brightest values, and the start is not.
    """
    kinds: dict[str, Callable[[np.ndarray], bool]] = {
        "pictures of one flat colour": _flat,
        "pictures of nothing but extreme values, as infinities that were cut off": _saturated,
    }
    if _flat(start):
        return
    for what, empty in kinds.items():
        # The first frame that is as it should be ends the look: one frame is what a good clip costs.
        if not empty(start) and all(empty(frame) for frame in frames):
            raise _broken(clip, "decoding", f"gave {what}", MENDS["VAE"])


def _flat(picture: np.ndarray) -> bool:
    return bool((picture == picture[0, 0]).all())


def _saturated(picture: np.ndarray) -> bool:
    return bool(((picture == 0) | (picture == 255)).all())


def _broken(clip: int, step: str, what: str, causes: str) -> ValueError:
    return ValueError(
        f"clip {clip + 1}: {step} {what}. Likely causes: {causes}. Nothing of this clip was kept; those before it stay"
    )
