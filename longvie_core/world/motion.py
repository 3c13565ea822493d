"""Smooth functions of time: where things of a procedural world are, and how they turn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Wave:
    """A smooth function of time: ``offset + rate*t + sum(amplitude * sin(2 pi t / period + phase))``.

    The periods are drawn from continuous ranges, so a scene never repeats exactly.
    """

    offset: float
    rate: float = 0.0
    terms: tuple[Triple, ...] = ()

    def at(self, time: float) -> float:
        """Value at ``time`` seconds."""
        swing = sum(size * math.sin(2 * math.pi * time / period + phase) for size, period, phase in self.terms)
        return self.offset + self.rate * time + swing

    def scaled(self, gain: float) -> Wave:
        """This wave times ``gain``."""
        terms = tuple((gain * size, period, phase) for size, period, phase in self.terms)
        return Wave(gain * self.offset, gain * self.rate, terms)

    def plus(self, other: Wave) -> Wave:
        """The sum of two waves."""
        return Wave(self.offset + other.offset, self.rate + other.rate, self.terms + other.terms)


@dataclass(frozen=True)
class Path:
    """A path in cylinder coordinates around the world's axis: azimuth in radians, radius and height in world units."""

    azimuth: Wave
    radius: Wave
    height: Wave

    def at(self, time: float) -> np.ndarray:
        """Position ``[3]`` (x, y, z)."""
        azimuth, radius = self.azimuth.at(time), self.radius.at(time)
        return np.array([radius * math.cos(azimuth), radius * math.sin(azimuth), self.height.at(time)])
