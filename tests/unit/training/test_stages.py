"""The stages: the papers' numbers, and on the meta device the published model's weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import WanTransformer3DModel

from longvie_core.backends.diffusers.blocks import control_network
from longvie_core.model.dual_control import DualControlConfig
from longvie_core.model.wan import WanConfig
from longvie_core.training.losses import LossWeights
from longvie_core.training.stages import (
    CONTROL,
    DEGRADATION,
    HISTORY,
    STAGES,
    TINY_BACKBONE,
    TINY_CONTROL,
    TINY_JOINT,
    TINY_PLAIN,
    TINY_ROBUST,
    changed,
)
from longvie_core.training.tasks.control import ControlledBackbone, exported, require_gradients
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


def learnt(network: ControlledBackbone, learns: str) -> dict[str, int]:
    require_gradients(network, learns)
    return {name: value.numel() for name, value in network.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("name", ["control", "degradation"])
def test_the_first_stages_learn_the_published_control_network(large: ControlledBackbone, name: str) -> None:
    found = learnt(large, STAGES[name].learns)
    assert sum(found.values()) == PUBLISHED_CONTROL and len(found) == 800
    assert all(key.startswith("control.") for key in found)
    files = exported(large, STAGES[name].learns)
    assert list(files) == ["control.safetensors"]
    weights, metadata = files["control.safetensors"]
    assert {key: tuple(value.shape) for key, value in weights.items()} == control_shapes(DualControlConfig())
    assert metadata == {"config": '{"head_dim": 128}'}


def test_the_third_stage_learns_the_bases_self_attention_too(large: ControlledBackbone) -> None:
    found = learnt(large, HISTORY.learns)
    base = {key: size for key, size in found.items() if key.startswith("backbone.")}
    assert sum(base.values()) == SELF_ATTENTION and len(base) == 400
    assert sum(found.values()) - SELF_ATTENTION == PUBLISHED_CONTROL
    weights, _ = exported(large, HISTORY.learns)["dit.safetensors"]
    assert {key: tuple(value.shape) for key, value in weights.items()} == overlay_shapes(40, 5120)


def test_joint_training_learns_everything() -> None:
    tiny = meta_network(TINY_BACKBONE, TINY_CONTROL)
    found = learnt(tiny, TINY_JOINT.learns)
    assert len(found) == len(list(tiny.parameters()))
    assert set(exported(tiny, TINY_JOINT.learns)) == {"control.safetensors", "backbone.safetensors"}
    counts = [sum(value.numel() for value in part.parameters()) for part in (tiny.backbone, tiny.control)]
    assert counts == [5_389_632, 1_625_344]


def test_the_papers_numbers() -> None:
    assert [stage.optimiser.rate for stage in (CONTROL, DEGRADATION, HISTORY)] == [1e-4, 1e-5, 5e-6]
    for stage in (CONTROL, DEGRADATION, HISTORY):
        assert stage.training.steps == 3000 and stage.clips * stage.training.accumulation * 8 == 64
        assert (stage.dense_features.probability, stage.dense_features.low, stage.dense_features.high) == (0.15, 0.05, 1.0)
        assert stage.depth.probability == 0.1 and stage.timesteps.shifts == (5.0,)
        assert vars(stage.streams) == {"both": 1.0, "dense": 0.0, "sparse": 0.0, "none": 0.0}
    assert CONTROL.depth.start == pytest.approx(2 / 3) and CONTROL.first_frame is None and CONTROL.histories == (0,)
    assert (DEGRADATION.first_frame.probability, DEGRADATION.first_frame.round_trip_share) == (0.2, 0.2)
    assert HISTORY.histories == tuple(range(17))
    assert HISTORY.loss.first_frames == (0.05, 0.325, 0.757)


def test_settings_are_changed_by_name() -> None:
    changes = {"training.steps": 7, "first_frame.probability": 1, "histories": [0, 5], "sheet_history": 5, "depth": None}
    stage = changed(HISTORY, changes)
    assert stage.training.steps == 7 and stage.training.log_every == HISTORY.training.log_every
    assert stage.first_frame.probability == 1.0 and isinstance(stage.first_frame.probability, float)
    assert stage.histories == (0, 5) and stage.depth is None
    assert changed(stage, {"optimiser.betas": [0.9, 0.95]}).optimiser.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("step", 3, "no setting 'step' here, but: learns, training"),
        ("training.stepz", 3, "no setting 'stepz' here, but: steps"),
        ("training.steps.more", 3, "no setting 'more' here, but: none"),
        ("training.steps", "many", "steps is a int, but 'many' is a str"),
        ("training.steps", 0, "steps is 0"),
        ("learns", "nothing", "use one of control"),
        ("clips", 0, "at least 1"),
        ("histories", [5, 8], "have 0"),
        ("histories", [0, 30], "within 0 .. 17"),
        ("sheet_history", 20, "not among the histories"),
        ("first_frame.probability", 2.0, "a probability lies in 0 .. 1"),
        ("weights", "int8", "weights 'int8' are none of float32, float16, bfloat16"),
    ],
)
def test_wrong_settings_are_named(path: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(HISTORY, {path: value})


def test_the_tiny_models_stages_differ_in_what_they_are_there_for() -> None:
    assert TINY_JOINT.learns != TINY_ROBUST.learns == HISTORY.learns
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
