"""The project against tensors that the reference computed: a small set kept here, the whole set where it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from devtools.parity import GROUPS, all_rows, network
from tests.helpers.places import RECORDED, SHARED

WHOLE = SHARED / "golden"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def failures(folder: Path, group: str) -> list[str]:
    rows = list(all_rows(folder, [group]))
    assert rows, f"group {group} compared nothing"
    return [str(row) for row in rows if not row.passed]


@pytest.mark.parametrize("group", sorted(GROUPS.keys() - {"conditioning"}))
def test_small_set(group: str) -> None:
    assert failures(RECORDED, group) == []


@pytest.mark.skipif(not WHOLE.is_dir(), reason="the reference's whole set is not beside this checkout")
@pytest.mark.parametrize("group", sorted(GROUPS))
def test_whole_set(group: str) -> None:
    assert failures(WHOLE, group) == []


def test_a_wrong_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    read = network.read_tensors

    def spoiled(path: Path) -> dict:
        tensors = read(path)
        if path.name.endswith("control.int8.safetensors"):
            tensors["control_combine_linears.0.bias"][0] += 1e-3
        return tensors

    monkeypatch.setattr(network, "read_tensors", spoiled)
    assert failures(RECORDED, "network")
