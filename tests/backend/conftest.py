"""The comfy backend on the real host's classes, in this process, with tiny seeded weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from devtools.inprocess import import_host
from tests.helpers.places import NO_COMFYUI, comfyui_is_there

if not comfyui_is_there():
    raise pytest.UsageError(NO_COMFYUI)
import_host()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402

from devtools.tiny import RANDOM_BACKBONE, RANDOM_CONTROL, RANDOM_VAE, write_tiny_weights  # noqa: E402
from longvie_core.model.dual_control import DualControlConfig, torch_dual_control  # noqa: E402
from longvie_core.model.wan import WanConfig, WanModel  # noqa: E402
from longvie_core.training.tiny import TINY_BACKBONE, TINY_CONTROL  # noqa: E402
from tests.helpers.harness import Rig, write_weights  # noqa: E402

IMAGE_BACKBONE = WanConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=3, has_image_input=True)
IMAGE_CONTROL = DualControlConfig(dim=256, control_dim=128, ffn_dim=128, num_heads=1, num_layers=2, image=True)


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of the tiny backbone, control network and VAE."""
    return write_tiny_weights(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def tiny(weights: dict[str, Path]) -> Rig:
    """A backbone without image branch, four blocks, three of them controlled."""
    return Rig.load(weights[RANDOM_BACKBONE], weights[RANDOM_CONTROL], TINY_BACKBONE, TINY_CONTROL)


@pytest.fixture(scope="session")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A backbone with image branch, as Wan2.1-I2V-14B has it: three blocks, two of them controlled."""
    folder = tmp_path_factory.mktemp("image_models")
    return Rig.load(
        write_weights(folder / "backbone.safetensors", WanModel(IMAGE_BACKBONE), 1),
        write_weights(folder / "control.safetensors", torch_dual_control(IMAGE_CONTROL), 2),
        IMAGE_BACKBONE,
        IMAGE_CONTROL,
    )


@pytest.fixture(params=["without image branch", "with image branch"])
def rig(request: pytest.FixtureRequest) -> Rig:
    return request.getfixturevalue("tiny_image" if request.param == "with image branch" else "tiny")


@pytest.fixture(scope="session")
def vae(weights: dict[str, Path]) -> object:
    """The host's Wan 2.1 VAE, tiny."""
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(weights[RANDOM_VAE])))


@pytest.fixture(autouse=True)
def as_the_host_runs_nodes() -> Iterator[None]:
    """Inference mode, and nothing left loaded or patched for the next test."""
    with torch.inference_mode():
        yield
        comfy.model_management.unload_all_models()
