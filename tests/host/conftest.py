"""The real ComfyUI host for the tests of this folder: one for the session, and further ones on demand."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devtools.host import Host
from devtools.tiny import write_tiny_weights
from tests.helpers.places import COMFYUI, NO_COMFYUI, ROOT, comfyui_is_there
from tests.helpers.workflow import SCENE, film_scene

# Nodes that only tests need; loaded beside the pack where the folder exists.
TEST_PACK = Path(__file__).with_name("longvie_test_pack")


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the host."""
    if not comfyui_is_there():
        pytest.fail(NO_COMFYUI)
    return COMFYUI


@pytest.fixture(scope="session")
def new_host(comfyui_path: Path) -> Callable[..., Host]:
    """Makes a host, not started, on a base folder, with the repository as the pack; keywords as for `Host`."""
    test_packs = [TEST_PACK] if TEST_PACK.is_dir() else []

    def new(base: Path, extra_packs: list[Path] = test_packs, **options: object) -> Host:
        return Host(comfyui_path, base, ROOT, extra_packs=extra_packs, **options)

    return new


@pytest.fixture(scope="session")
def host(new_host: Callable[..., Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The host that the tests of a session share; none of them may stop it."""
    with new_host(tmp_path_factory.mktemp("host")) as shared:
        yield shared


@pytest.fixture
def make_host(new_host: Callable[..., Host], tmp_path: Path) -> Iterator[Callable[..., Host]]:
    """Starts a host of the test's own and stops it after the test; `base` (default: a new folder) may be used again."""
    started: list[Host] = []

    def make(base: Path | None = None, **options: object) -> Host:
        host = new_host(base or tmp_path / f"host-{len(started)}", **options)
        started.append(host)
        host.start()
        return host

    yield make
    for host in started:
        host.stop()


@pytest.fixture(scope="session")
def tiny_models(comfyui_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with random weights of LongVie-Tiny's size."""
    models = tmp_path_factory.mktemp("models")
    write_tiny_weights(models)
    return models


@pytest.fixture(scope="session")
def stock(tiny_models: Path) -> Callable[[Host], Host]:
    """Puts the random weights and the shared control clips into a host's folders, whether it runs or not."""

    def stock(host: Host) -> Host:
        shutil.copytree(tiny_models, host.base / "models", dirs_exist_ok=True)
        film_scene(host.base / "input" / SCENE)
        return host

    return stock


@pytest.fixture(scope="session")
def tiny_host(host: Host, stock: Callable[[Host], Host]) -> Host:
    """The shared host with the random weights and the shared control clips."""
    return stock(host)
