"""The stages: the papers' numbers, and on the meta device the published model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass, replace
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from diffusers import WanTransformer3DModel

from longvie_core.backends.diffusers.blocks import control_network
from longvie_core.model.dual_control import DualControlConfig
from longvie_core.model.wan import WanConfig
from longvie_core.training.degradation.dense import DepthDegradation
from longvie_core.training.losses import LossWeights
from longvie_core.training.networks.controlled_backbone import ControlledBackbone, published_files, require_gradients
from longvie_core.training.overrides import RENAMED, override
from longvie_core.training.stages import CONTROL, DEGRADATION, HISTORY, STAGES, TINY_JOINT, TINY_PLAIN, TINY_ROBUST
from longvie_core.training.tiny import TINY_BACKBONE, TINY_CONTROL
from longvie_core.weights.backbone import diffusers_backbone_config
from longvie_core.weights.control import control_shapes
from longvie_core.weights.overlay import overlay_shapes

PUBLISHED_CONTROL = 2_633_637_888
"""Parameters of the published control.safetensors."""

SELF_ATTENTION = 40 * (4 * (5120 * 5120 + 5120) + 2 * 5120)
"""Parameters of the published dit.safetensors: 400 tensors, 4.2 billion."""


def meta_network(backbone: WanConfig, control: DualControlConfig) -> ControlledBackbone:
    with torch.device("meta"):
        return ControlledBackbone(WanTransformer3DModel(**diffusers_backbone_config(backbone)), control_network(control))


@pytest.fixture(scope="module")
def large() -> ControlledBackbone:
    return meta_network(WanConfig(), DualControlConfig())


def learnt(network: ControlledBackbone, trainable: str) -> dict[str, int]:
    require_gradients(network, trainable)
    return {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", ["control", "degradation"])
def test_the_first_stages_learn_the_published_control_network(large: ControlledBackbone, name: str) -> None:
    found = learnt(large, STAGES[name].trainable)
    assert sum(found.values()) == PUBLISHED_CONTROL and len(found) == 800
    assert all(key.startswith("control.") for key in found)
    files = published_files(large, STAGES[name].trainable)
    assert list(files) == ["control.safetensors"]
    weights, metadata = files["control.safetensors"]
    assert {key: tuple(value.shape) for key, value in weights.items()} == control_shapes(DualControlConfig())
    assert metadata == {"config": '{"head_dim": 128}'}


def test_the_third_stage_learns_the_bases_self_attention_too(large: ControlledBackbone) -> None:
    found = learnt(large, HISTORY.trainable)
    base = {key: size for key, size in found.items() if key.startswith("backbone.")}
    assert sum(base.values()) == SELF_ATTENTION and len(base) == 400
    assert sum(found.values()) - SELF_ATTENTION == PUBLISHED_CONTROL
    weights, _ = published_files(large, HISTORY.trainable)["dit.safetensors"]
    assert {key: tuple(value.shape) for key, value in weights.items()} == overlay_shapes(40, 5120)


def test_joint_training_learns_everything() -> None:
    tiny = meta_network(TINY_BACKBONE, TINY_CONTROL)
    found = learnt(tiny, TINY_JOINT.trainable)
    assert len(found) == len(list(tiny.parameters()))
    assert set(published_files(tiny, TINY_JOINT.trainable)) == {"control.safetensors", "backbone.safetensors"}
    counts = [sum(value.numel() for value in part.parameters()) for part in (tiny.backbone, tiny.control)]
    assert counts == [5_389_632, 1_625_344]


def test_the_papers_numbers() -> None:
    assert [stage.optimizer.lr for stage in (CONTROL, DEGRADATION, HISTORY)] == [1e-4, 1e-5, 5e-6]
    for stage in (CONTROL, DEGRADATION, HISTORY):
        assert stage.training.steps == 3000 and stage.batch_size * stage.training.grad_accum_steps * 8 == 64
        assert (stage.dense_features.probability, stage.dense_features.low, stage.dense_features.high) == (0.15, 0.05, 1.0)
        assert stage.depth.probability == 0.1 and stage.timesteps.shifts == (5.0,)
        assert vars(stage.streams) == {"both": 1.0, "dense": 0.0, "sparse": 0.0, "none": 0.0}
    assert CONTROL.depth.start == pytest.approx(2 / 3) and CONTROL.first_frame is None and CONTROL.histories == (0,)
    assert (DEGRADATION.first_frame.probability, DEGRADATION.first_frame.round_trip_share) == (0.2, 0.2)
    assert HISTORY.histories == tuple(range(17))
    assert HISTORY.loss.first_frames == (0.05, 0.325, 0.757)


def test_settings_are_changed_by_name() -> None:
    changes = {"training.steps": 7, "first_frame.probability": 1, "histories": [0, 5], "sheet_history": 5, "depth": None}
    stage = override(HISTORY, changes)
    assert stage.training.steps == 7 and stage.training.log_every == HISTORY.training.log_every
    assert stage.first_frame.probability == 1.0 and isinstance(stage.first_frame.probability, float)
    assert stage.histories == (0, 5) and stage.depth is None
    assert override(stage, {"optimizer.betas": [0.9, 0.95]}).optimizer.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step", 3, "no setting 'step': did you mean 'timesteps'"),
        ("nothing", 3, "no setting 'nothing'; the stage has: trainable, training"),
        ("training.stepz", 3, "no setting 'training.stepz': did you mean 'training.steps'"),
        ("training.steps.more", 3, "no setting 'training.steps.more': 'training.steps' is a single value"),
        ("training.steps", "many", 'training.steps is "many": it should be a valid integer, such as 3000'),
        ("training.steps", 0, "steps is 0"),
        ("trainable", "nothing", "use one of control"),
        ("batch_size", 0, "batch_size is 0: give at least 1"),
        ("variants", 0, "variants is 0: give at least 1"),
        ("sheet_clips", 0, "sheet_clips is 0: give at least 1"),
        ("histories", [5, 8], "have 0"),
        ("histories", [0, 30], "within 0 .. 17"),
        ("sheet_history", 20, "not among the histories"),
        ("first_frame.probability", 2.0, "first_frame: probability is 2.0: a probability lies in 0 .. 1"),
        (
            "first_frame.round_trips",
            [0, 1],
            "round_trips has 2 values and round_trip_weights 11: give both, one weight for each",
        ),
        ("first_frame.round_trip_weights", [0, -1], "round_trips has 11 values and round_trip_weights 2"),
        ("first_frame.noise_weights", [3, 2, 1, -1, 0], r"noise_weights\[3\] is -1"),
        ("first_frame.noise_levels", [1, 2, 3, 4, 1000], "noise_levels run from 1 to 1000: give t within 1 .. 999"),
        (
            "first_frame.drift.low",
            0.1,
            "first_frame.drift.low cannot be set, because first_frame.drift is null: set first_frame.drift",
        ),
        ("weights", "int8", "weights 'int8' are none of float32, float16, bfloat16"),
    ],
)
def test_wrong_settings_are_named(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(HISTORY, {path: value})


def all_settings(settings: object, path: str = "") -> Iterator[tuple[str, object, object]]:
    """Dotted name, declared type and value of every setting, parts of a stage and what is in them alike."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        yield path + name, hint, value
        if is_dataclass(value):
            yield from all_settings(value, f"{path}{name}.")


def wrong_values(hint: object) -> Iterator[tuple[object, str]]:
    """Values of other types than the declared one, and what has to be said of each."""
    nan, infinite = (float("nan"), "finite number"), (float("inf"), "finite number")
    if hint is int:
        yield from (("abc", "integer"), (True, "integer"), (1.5, "integer"), (nan[0], "integer"), ([1], "integer"))
    elif hint is float:
        yield from (("abc", "number"), (True, "number"), nan, infinite, (None, "number"))
    elif hint is bool:
        yield from ((1, "boolean"), ("yes", "boolean"), (None, "boolean"))
    elif hint is str:
        yield from ((1, "string"), (True, "string"), (None, "string"))
    elif get_origin(hint) is Literal:
        yield from (("abc", " or "), (1, " or "), (None, " or "))
    elif get_origin(hint) is tuple:
        inner, *more = get_args(hint)
        yield from ((1, "array"), ("abc", "array"), (None, "array"))
        yield from (([value], text) for value, text in wrong_values(inner))
        if more != [Ellipsis]:
            yield from (([0.5], "is missing"), ([0.5, 0.5, 0.5, 0.5], "at most 2 items"))
    else:  # settings of their own, which some stages go without
        yield from (("abc", "give an object"), (1, "give an object"), ({"abc": 1}, "no setting"))
        if type(None) not in get_args(hint):
            yield None, "give an object"


EVERY_SETTING = [
    pytest.param(stage, name, hint, id=f"{stage}-{name}") for stage in STAGES for name, hint, _ in all_settings(STAGES[stage])
]


@pytest.mark.parametrize(("stage", "name", "hint"), EVERY_SETTING)
def test_every_setting_is_checked_against_its_type(stage: str, name: str, hint: object) -> None:
    values = list(wrong_values(hint))
    assert len(values) >= 3
    for value, text in values:
        with pytest.raises(ValueError) as raised:
            override(STAGES[stage], {name: value})
        assert name in str(raised.value) and text in str(raised.value), f"{value!r}: {raised.value}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_takes_its_own_value(stage: str) -> None:
    settings = STAGES[stage]
    assert override(settings, {}) == settings
    for name, _, value in all_settings(settings):
        assert override(settings, {name: asdict(value) if is_dataclass(value) else value}) == settings


def test_whole_parts_are_switched_on_and_off() -> None:
    on = override(TINY_JOINT, {"depth.halvings": 3, "depth": {}})
    assert on.depth == DepthDegradation(halvings=3)
    assert override(on, {"depth": None}).depth is None
    assert override(HISTORY, {"loss": {"low_pass": 1}}).loss == LossWeights(low_pass=1.0)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_settings_of_old_names_are_refused_with_their_new_ones(old: str, new: str) -> None:
    with pytest.raises(ValueError, match=f"the setting '{old}' is called '{new}' now"):
        override(HISTORY, {old: 1})
    assert new in {name for name, *_ in all_settings(HISTORY)}


def test_the_tiny_models_stages_differ_in_what_they_are_there_for() -> None:
    assert TINY_JOINT.trainable != TINY_ROBUST.trainable == HISTORY.trainable
    for stage in (TINY_JOINT, TINY_PLAIN):  # pictures as they are
        assert stage.depth is stage.first_frame is None
        assert stage.dense_features.probability == 0
    robust = TINY_ROBUST
    assert robust.dense_features == CONTROL.dense_features and robust.depth is None
    assert (robust.first_frame.probability, robust.first_frame.round_trip_share) == (0.6, 1.0)
    assert robust.first_frame.round_trips == HISTORY.first_frame.round_trips
    # P2's weights of the first latent frames would silence three of the five that these clips have.
    assert robust.loss == LossWeights(first_frames=(), low_pass=0, high_pass=0, history=0)
    assert replace(TINY_PLAIN, first_frame=robust.first_frame, dense_features=robust.dense_features) == TINY_ROBUST
    assert TINY_JOINT.streams == TINY_ROBUST.streams and TINY_JOINT.histories == TINY_ROBUST.histories == (0, 5, 8, 9)


def test_stages_are_values() -> None:
    assert replace(CONTROL) == CONTROL != DEGRADATION
