"""Broken numbers, NaN and the infinities, refused by name where they come in: they pass every comparison with a limit.

``nan < 0`` and ``nan > 100`` are both false, so a range check alone lets NaN through, and all that is computed from it is NaN.
"""

from __future__ import annotations

import math
from typing import SupportsFloat


def finite(**numbers: SupportsFloat) -> None:
    """Refuse numbers that are not finite.

    Args:
        numbers: by the names that the user knows them by.

    Raises:
        ValueError: naming the first one that is NaN or infinite.
    """
    for name, value in numbers.items():
        if not _is_finite(value):
            raise ValueError(f"{name} is {value}: give a finite number")


def _is_finite(value: SupportsFloat) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a fraction beyond the range of floats
        return False
