"""What control does to a MODEL: nothing to the one that was given, and everything that the host's memory management needs."""

import logging

import comfy.model_management
import pytest
import torch
from comfy.model_patcher import ModelPatcher

from longvie_core.backends import comfy as backend
from longvie_core.model.dual_control import Strengths
from longvie_core.model.noise import gaussian
from tests.helpers.harness import (
    Rig,
    evaluate,
    ksampler,
    largest,
    make_clip,
    make_sample,
    sample_traced,
    shifted,
    watch_memory_estimates,
)

NO_CALL = "without calling LongVie's control"


def state_of(model: ModelPatcher) -> tuple:
    """Everything that a node may put on a MODEL."""
    options = model.model_options["transformer_options"]
    return (
        {kind: {key: list(value) for key, value in keys.items()} for kind, keys in model.wrappers.items()},
        {name: list(patches) for name, patches in options.get("patches", {}).items()},
        {name: dict(value) for name, value in options.get("patches_replace", {}).items()},
        dict(model.patches),
        dict(model.object_patches),
        sorted(options),
        sorted(model.model_options),
    )


# Clones


def test_the_model_given_stays_untouched(tiny: Rig) -> None:
    base = shifted(tiny.model)
    network = base.model.diffusion_model
    before, weights = state_of(base), {key: value.clone() for key, value in network.state_dict().items()}
    patched = backend.apply_control(base, tiny.control)
    assert state_of(base) == before
    assert state_of(patched) != before
    ksampler(patched, make_clip(history=2), 3.0, 2)
    assert state_of(base) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert patched.model is base.model


def test_clones_do_not_influence_each_other(tiny: Rig) -> None:
    sample = make_sample(tiny, history=2)
    strengths = {"full": (1.0, 1.0), "weak": (0.3, 0.5), "off": (0.0, 0.0)}
    clones = {name: tiny.controlled(*values) for name, values in strengths.items()}
    for _ in range(2):
        for name, values in strengths.items():
            assert largest(evaluate(clones[name], sample) - tiny.velocity(sample, Strengths(*values))) < 5e-5


def test_a_clone_of_a_controlled_model_is_controlled(tiny: Rig) -> None:
    """Nodes behind Apply Control clone the MODEL."""
    sample = make_sample(tiny, history=2)
    patched = tiny.controlled()
    assert torch.equal(evaluate(patched.clone(), sample), evaluate(patched, sample))


def test_one_control_network_on_two_backbones(tiny: Rig) -> None:
    """A sampler for each of two LoRAs shares the control network."""
    other = tiny.model.clone()
    key = "diffusion_model.blocks.3.ffn.2.weight"
    other.add_patches({key: ("diff", (tiny.model.model.state_dict()[key].float().clone(),))})
    sample = make_sample(tiny)
    first, second = tiny.controlled(), backend.apply_control(other, tiny.control)
    expected = evaluate(first, sample)
    assert largest(evaluate(second, sample) - expected) > 0.01
    assert torch.equal(evaluate(first, sample), expected)


def test_nothing_of_a_run_stays_behind(tiny: Rig) -> None:
    """A run after others on the same patched MODEL is what it would be alone."""
    patched = backend.apply_control(shifted(tiny.model), tiny.control)
    alone = ksampler(patched, make_clip(history=2))
    for clip in (make_clip((5, 2, 4), history=3, seed=70), make_clip(seed=80)):
        ksampler(patched, clip, steps=2)
    assert torch.equal(ksampler(patched, make_clip(history=2)), alone)


def test_the_callers_options_stay_clean(tiny: Rig) -> None:
    """The streams of an evaluation live in a copy: another conditioning of the same step must not find them."""
    patched, sample = tiny.controlled(), make_sample(tiny)
    comfy.model_management.load_models_gpu([patched])
    options = {**patched.model_options["transformer_options"], "wrappers": patched.wrappers}
    before = dict(options)
    controls = {backend.DENSE: sample.dense, backend.SPARSE: sample.sparse}
    network = patched.model.diffusion_model
    network(sample.x, sample.timestep, sample.text, transformer_options=options, **controls)
    assert options == before


# Memory


def test_the_host_knows_the_control_network(tiny: Rig) -> None:
    assert tiny.model.model_patches_models() == []
    assert tiny.controlled().model_patches_models() == [tiny.control]


def test_the_host_loads_both(tiny: Rig) -> None:
    patched = tiny.controlled()
    assert not comfy.model_management.current_loaded_models
    during = []
    sample_traced(patched, make_clip(), 1, lambda _: during.append(comfy.model_management.loaded_models()))
    for loaded in (*during, comfy.model_management.loaded_models()):
        assert any(model.is_clone(patched) for model in loaded)
        assert tiny.control in loaded
    assert len(during) == 1


@pytest.mark.parametrize("history", [0, 1, 3])
def test_memory_is_budgeted_with_the_history(tiny: Rig, history: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch_memory_estimates(monkeypatch)
    clip = make_clip((3, 4, 6), history)
    assert ksampler(tiny.controlled(), clip, steps=1).shape == clip.shape
    assert shapes == [[1, 16, 3 + history, 4, 6]]


# Replaced forwards


def without_block_patches(model: ModelPatcher) -> ModelPatcher:
    """What third-party caches do: a forward of their own, written before the post-block hook was there."""
    forward = model.model.diffusion_model.forward_orig

    def replaced(x, t, context, clip_fea=None, freqs=None, transformer_options=None, **kwargs):
        options = {key: value for key, value in transformer_options.items() if key != "patches"}
        return forward(x, t, context, clip_fea, freqs, options, **kwargs)

    replacing = model.clone()
    replacing.add_object_patch("diffusion_model.forward_orig", replaced)
    return replacing


@pytest.mark.parametrize("replaced_first", [True, False])
def test_a_forward_that_skips_the_control_is_reported_once(
    tiny: Rig, replaced_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = shifted(tiny.model)
    if replaced_first:
        patched = backend.apply_control(without_block_patches(model), tiny.control)
    else:
        patched = without_block_patches(backend.apply_control(model, tiny.control))
    with caplog.at_level(logging.WARNING):
        latents = ksampler(patched, make_clip())
        ksampler(patched, make_clip())
    records = [record for record in caplog.records if NO_CALL in record.getMessage()]
    assert len(records) == 1
    assert records[0].levelno == logging.WARNING and records[0].name == "longvie"
    assert torch.equal(latents, ksampler(model, make_clip()))  # the control is missing indeed


def test_a_forward_that_is_not_replaced_is_not_reported(tiny: Rig, caplog: pytest.LogCaptureFixture) -> None:
    off = backend.ModalityRange(0.0)
    early, late = backend.ModalityRange(1.0, 0.3, 0.6), backend.ModalityRange(1.0, 0.9, 1.0)
    with caplog.at_level(logging.WARNING):
        for dense, sparse in ((None, None), (off, off), (early, late)):
            ksampler(backend.apply_control(shifted(tiny.model), tiny.control, dense, sparse), make_clip(history=2), 3.0)
    assert "longvie" not in {record.name for record in caplog.records}


# Other owners of the same hooks


def test_other_block_patches_run_beside_it(tiny: Rig) -> None:
    """Native control networks use the same post-block hook; the order of the nodes does not matter to a sum."""
    sample = make_sample(tiny, history=2)
    seen, direction = [], gaussian(5, (256,))

    def other(args: dict) -> dict:
        seen.append(args["block_index"])
        args["img"] = args["img"] + 0.1 * direction
        return args

    before, after = tiny.model.clone(), tiny.controlled()
    before.set_model_double_block_patch(other)
    after.set_model_double_block_patch(other)
    first = evaluate(backend.apply_control(before, tiny.control), sample)
    second = evaluate(after, sample)
    assert seen == [0, 1, 2, 3] * 2
    assert largest(first - second) < 5e-5
    assert largest(first - evaluate(tiny.controlled(), sample)) > 0.01


def test_attention_patches_do_not_reach_the_control_blocks(tiny: Rig) -> None:
    """They are made for the backbone's width and heads."""
    widths = []

    def attention_patch(args: dict) -> torch.Tensor:
        widths.append(args["x"].shape[-1])
        return args["x"]

    patched = tiny.controlled()
    patched.set_model_patch(attention_patch, "attn1_patch")
    patched.set_model_patch(attention_patch, "attn2_patch")
    sample = make_sample(tiny)
    assert torch.equal(evaluate(patched, sample), evaluate(tiny.controlled(), sample))
    assert widths == [256] * 2 * len(tiny.model.model.diffusion_model.blocks)
