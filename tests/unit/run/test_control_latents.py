"""Encoded controls on disk: bit by bit what was encoded, never another's, and never in the way of a run."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from longvie_core.disk.cache import ControlCache
from longvie_core.run.control_latents import LatentStore

SHAPE = (1, 16, 3, 4, 6)


@pytest.fixture
def cache(tmp_path: Path) -> ControlCache:
    return ControlCache(tmp_path, 1 << 30)


def latents(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_kept_comes_back_bit_by_bit(cache: ControlCache, dtype: torch.dtype) -> None:
    video, first = latents(0, dtype), latents(1, dtype)
    video[0, 0, 0, 0, :3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    with LatentStore(cache, "vae") as store:
        store.write("digest", video.transpose(3, 4).contiguous().transpose(3, 4), first)
    with LatentStore(cache, "vae") as store:
        got = store.read("digest", SHAPE)
        assert all(a.dtype == dtype for a in got)
        for ours, theirs in zip(got, (video, first), strict=True):
            assert torch.equal(ours.contiguous().view(torch.uint8), theirs.view(torch.uint8))
        assert (store.misses, store.hits) == (0, 1)
        assert store.report == ["control latents: 0 encoded, 1 kept"]


def test_another_control_or_another_encoder_is_another_entry(cache: ControlCache) -> None:
    with LatentStore(cache, "vae") as store:
        store.write("digest", latents(0), latents(1))
        assert store.read("other digest", SHAPE) is None
        assert LatentStore(cache, "other vae").read("digest", SHAPE) is None
        assert store.read("digest", SHAPE) is not None


def test_of_another_shape_it_is_encoded_again(cache: ControlCache) -> None:
    with LatentStore(cache, "vae") as store:
        store.write("digest", latents(0), latents(1))
        assert store.read("digest", (1, 16, 3, 4, 7)) is None
        assert store.hits == 0


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_torn_file_is_encoded_again(cache: ControlCache, keep: int) -> None:
    with LatentStore(cache, "vae") as store:
        store.write("digest", latents(0), latents(1))
        path = store.pin("digest")
        path.write_bytes(path.read_bytes()[:keep])
        assert store.read("digest", SHAPE) is None
        store.write("digest", latents(0), latents(1))
        assert torch.equal(store.read("digest", SHAPE)[0], latents(0))


def test_without_controls_there_is_nothing_to_report(cache: ControlCache) -> None:
    with LatentStore(cache, "vae") as store:
        assert store.report == []


def size_of_one(cache: ControlCache) -> int:
    with LatentStore(cache, "vae") as store:
        store.write("size", latents(0), latents(1))
        path = store.pin("size")
        size = path.stat().st_size
        path.unlink()
    return size


def test_room_is_made_by_dropping_others_and_never_what_a_running_loop_holds(tmp_path: Path) -> None:
    size = size_of_one(ControlCache(tmp_path, 1 << 30))
    cache = ControlCache(tmp_path, 3 * size)
    with LatentStore(cache, "vae") as earlier:
        for name in ("old", "held"):
            earlier.write(name, latents(0), latents(1))
    held, old = (earlier.cache.folder / path.name for path in (earlier.pin("held"), earlier.pin("old")))
    cache.used.clear()
    os.utime(held, ns=(0, 0))  # the first to go, were it not held
    os.utime(old, ns=(1, 1))
    with LatentStore(cache, "vae") as store:
        store.pin("held")
        os.utime(held, ns=(0, 0))
        for name in ("a", "b", "c"):
            store.write(name, latents(2), latents(3))
        assert held.exists() and not old.exists()
        # More than the limit is there: it is all needed.
        assert [store.read(name, SHAPE) is not None for name in ("held", "a", "b", "c")] == [True] * 4
    os.utime(held, ns=(0, 0))
    with LatentStore(cache, "vae") as later:
        later.write("d", latents(4), latents(5))
        assert not held.exists(), "what no loop holds any more may go"
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4 * size


def test_what_is_not_there_yet_does_not_count_as_lost(cache: ControlCache) -> None:
    # Nodes that remember derived controls ask the cache whether something was lost; they must not be made to work again.
    before = cache.forget_lost()
    with LatentStore(cache, "vae") as store:
        store.pin("never written")
    assert cache.forget_lost() == before


def test_a_full_disk_costs_the_cache_and_not_the_run(cache: ControlCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with LatentStore(cache, "vae") as store:
        for digest in ("a", "b"):
            store.write(digest, latents(0), latents(1))
        assert store.read("a", SHAPE) is None
        note, counts = store.report
        assert "cannot be kept" in note and "No space left" in note and str(cache.folder) in note
        assert counts == "control latents: 2 encoded, 0 kept"
    assert list(cache.folder.iterdir()) == []
