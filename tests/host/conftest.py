"""The real ComfyUI host for the tests of this folder: one for the session, and further ones on demand."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devtools.host import Host

ROOT = Path(__file__).resolve().parents[2]
# Nodes that only tests need; loaded beside the pack where the folder exists.
TEST_PACK = Path(__file__).with_name("longvie_test_pack")


@pytest.fixture(scope="session")
def comfyui_path() -> Path:
    """The folder of the host: COMFYUI_PATH, else the one that dev.py has fetched."""
    path = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI-0.30.0")
    if not (path / "main.py").is_file():
        pytest.fail(f"there is no ComfyUI at {path}: run 'python dev.py test' once, or name one in COMFYUI_PATH")
    return path


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
