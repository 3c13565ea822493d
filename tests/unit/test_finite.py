"""NaN and infinities are refused by name wherever a number comes in."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from longvie_core import generate
from longvie_core.finite import finite
from longvie_core.model.clip import ClipStrengths, HistorySettings, ModalityRange
from longvie_core.model.dual_control import Strengths
from longvie_core.model.noise import UnifiedNoise
from longvie_core.model.schedule import check_sigmas, flow_sigmas
from longvie_core.plan import ClipPlan
from longvie_core.run.colour_anchor import AnchorSettings
from longvie_core.run.diffusers_networks import Sampling
from longvie_core.run.prompts import parse_prompts

BROKEN = [float("nan"), float("inf"), float("-inf")]

SETTINGS: dict[str, Callable[[float], object]] = {
    "fps": lambda value: ClipPlan(fps=value),
    "shift": lambda value: flow_sigmas(4, value),
    "alpha": lambda value: UnifiedNoise(0, "global + alpha * N(0,1)", value),
    "strength": lambda value: ModalityRange(value),
    "range": lambda value: ModalityRange(1.0, 0.0, value),
    "dense_strength": lambda value: Strengths(dense=value),
    "sparse_strength": lambda value: ClipStrengths(sparse=value),
    "first frame sigma": lambda value: HistorySettings(first_frame_sigma=value),
    "anchor strength": lambda value: AnchorSettings("pixels", value),
    "cfg": lambda value: Sampling(cfg=value),
    "first_frame_sigma": lambda value: Sampling(first_frame_sigma=value),
    "sigmas: number 2 of 3": lambda value: check_sigmas(torch.tensor([1.0, value, 0.0])),
}


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_is_no_number(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        SETTINGS[name](value)


@pytest.mark.parametrize(("sigmas", "words"), [([], "shape"), ([1.0], "shape"), ([[1.0, 0.0]], "shape"), ([1.0, -0.5], "-0.5")])
def test_sigmas_that_are_no_schedule(sigmas: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_sigmas(torch.tensor(sigmas))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["dense_strength", "sparse_strength", "seed_offset"])
def test_a_number_of_the_prompts_that_is_none(key: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"prompt 1.*'{key}'"):
        parse_prompts(f'[{{"prompt": "a", "{key}": {value}}}]')


def float_options() -> list[str]:
    """The options of the command line whose value is a number with decimals."""
    return [
        action.option_strings[0]
        for action in generate._parser()._actions
        if isinstance(action.default, float) or action.dest == "fps"
    ]


def test_all_float_options_are_found() -> None:
    assert {"--cfg", "--shift", "--fps", "--dense-strength", "--anchor-strength", "--first-frame-sigma"} <= set(float_options())


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "NaN", "cfg"])
@pytest.mark.parametrize("option", float_options())
def test_an_option_that_is_no_number(option: str, value: str, capsys: pytest.CaptureFixture) -> None:
    files = ["--backbone", "b", "--vae", "v", "--control", "c"]
    with pytest.raises(SystemExit, match="2"):
        generate.main(["run", *files, f"{option}={value}"])
    assert f"argument {option}: '{value}' is no" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "rate"), [("16", 16), ("24000/1001", Fraction(24000, 1001)), ("29.97", Fraction("29.97"))])
def test_a_rate_is_read_exactly(text: str, rate: Fraction) -> None:
    assert generate._fraction(text) == rate


@pytest.mark.parametrize("text", ["1e999999999", "1/0", "1/000", "-16", "", "16 fps", "1.5/2"])
def test_a_rate_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no rate such as"):
        generate._fraction(text)


def test_a_fraction_beyond_the_range_of_floats() -> None:
    with pytest.raises(ValueError, match="fps is 1000"):
        ClipPlan(fps=Fraction(10**400))


def test_what_is_finite_passes() -> None:
    finite(zero=0.0, many=1e300, whole=7)
