"""Networks outside ComfyUI are what their files hold, and what was encoded is made again where it is damaged."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longvie_core.run.diffusers_networks import DiffusersNetworks, ModelFiles, Sampling, files_fingerprint
from longvie_core.run.text_embeddings import EmbeddingStore


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    return path


@pytest.fixture
def files(tmp_path: Path) -> ModelFiles:
    folder = tmp_path / "models"
    write(folder / "encoder" / "weights.bin", b"encoder")
    single = {name: write(folder / f"{name}.safetensors", name.encode()) for name in ("backbone", "control", "vae")}
    return ModelFiles(**single, text_encoder=folder / "encoder")


def networks(files: ModelFiles, run: Path, sampling: Sampling | None = None) -> DiffusersNetworks:
    return DiffusersNetworks(files, sampling or Sampling(), run / "control_latents")


def test_renamed_moved_and_touched_files_are_the_same_networks(files: ModelFiles, tmp_path: Path) -> None:
    before = networks(files, tmp_path / "run")
    assert before.parts  # before they are moved
    moved = {name: path for name, path in vars(files).items() if path is not None}
    for name, path in moved.items():
        moved[name] = Path(shutil.move(path, tmp_path / f"other {path.name}"))
        if moved[name].is_file():
            os.utime(moved[name], (1, 1))
    after = networks(ModelFiles(**moved), tmp_path / "other run")
    assert before.parts == after.parts and before.contents == after.contents
    # Version 0.1 knew them by name, size and time, and its runs are still found by these.
    assert files_fingerprint(moved["vae"]) != files_fingerprint(write(tmp_path / "vae.safetensors", b"vae"))


@pytest.mark.parametrize("name", ["backbone", "control", "vae", "text_encoder"])
def test_one_other_byte_is_another_network(files: ModelFiles, tmp_path: Path, name: str) -> None:
    before = networks(files, tmp_path / "run").parts
    path = getattr(files, name)
    path = path / "weights.bin" if path.is_dir() else path
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"!")
    after = networks(files, tmp_path / "run").parts
    assert before != after
    same = {"backbone": "vae", "control": "vae", "vae": "model", "text_encoder": "model"}[name]
    assert before.networks[same] == after.networks[same]


def test_files_are_read_once_for_all_processes_of_a_run(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = networks(files, tmp_path / "run").contents
    monkeypatch.setattr("longvie_core.disk.contents.BLOCK", None)  # reading anything would fail
    assert networks(files, tmp_path / "run").contents == before
    assert (tmp_path / "run" / "contents.json").is_file()
    with pytest.raises(TypeError):
        _ = networks(files, tmp_path / "other run").contents


def test_a_missing_network_is_named(files: ModelFiles, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors does not exist"):
        _ = networks(replace(files, overlay=tmp_path / "gone.safetensors"), tmp_path / "run").parts


def test_a_cache_limit_that_is_no_size_is_refused_before_anything_is_loaded(
    files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGVIE_CACHE_GIB", "lots")
    with pytest.raises(ValueError, match="LONGVIE_CACHE_GIB is 'lots'"):
        networks(files, tmp_path / "run")


def test_embeddings_of_another_encoder_or_dtype_are_others(files: ModelFiles, tmp_path: Path) -> None:
    single, half = (networks(files, tmp_path, Sampling(dtype=dtype)).texts(tmp_path) for dtype in ("float32", "bfloat16"))
    single._store.write("a fox", torch.ones(1, 3, 4))
    assert single.missing(["a fox", "a fox"]) == [] and half.missing(["a fox", "a fox"]) == ["a fox"]


@pytest.mark.parametrize("damage", ["torn", "one byte", "lost"])
def test_a_damaged_embedding_is_not_believed(tmp_path: Path, damage: str) -> None:
    store = EmbeddingStore(tmp_path / "prompts", "encoder")
    store.write("a fox", torch.ones(1, 3, 4))
    (path,) = store.folder.iterdir()
    data = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "torn" else data[:-1] + b"!")
    assert store.read("a fox") is None
    assert store.missing(["a fox"]) == ([] if damage == "one byte" else ["a fox"])
    store.write("a fox", torch.ones(1, 3, 4))
    assert path.read_bytes() == data and torch.equal(store.read("a fox"), torch.ones(1, 3, 4))
