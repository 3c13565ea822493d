"""Tensors on disk are believed only under the name that they were written for, and bit by bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from longvie_core.disk.tensors import claims_tensors, read_tensors, write_tensors


def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(12.0).reshape(3, 4), "b": torch.tensor([[float("nan"), -0.0]], dtype=torch.bfloat16)}


def test_they_come_back_bit_by_bit_and_equal_ones_are_equal_files(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, {name: value.T.contiguous().T for name, value in tensors().items()})
    back = read_tensors(path)
    assert back is not None and back.keys() == tensors().keys()
    assert all(torch.equal(back[name].view(torch.uint8), value.view(torch.uint8)) for name, value in tensors().items())
    data = path.read_bytes()
    for _ in range(5):
        write_tensors(path, tensors())
        assert path.read_bytes() == data


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    write_tensors(path, tensors())
    data = path.read_bytes()
    for number in range(len(data)):
        path.write_bytes(data[:number] + bytes([data[number] ^ 1]) + data[number + 1 :])
        found = read_tensors(path)
        # Nothing but the header's padding may differ without a difference.
        assert found is None or data[number : number + 1] == b" ", number
    for keep in (0, 7, 8, 100, len(data) - 1):
        path.write_bytes(data[:keep])
        assert read_tensors(path) is None and not claims_tensors(path)


@pytest.mark.parametrize("case", ["missing", "link", "renamed", "of another program", "a folder"])
def test_what_is_not_ours_is_not_believed(tmp_path: Path, case: str) -> None:
    path, other = tmp_path / "one.safetensors", tmp_path / "other.safetensors"
    write_tensors(other, tensors())
    if case == "link":
        (tmp_path / "outside").mkdir()
        write_tensors(tmp_path / "outside" / path.name, tensors())
        path.symlink_to(tmp_path / "outside" / path.name)
    elif case == "renamed":
        other.rename(path)
    elif case == "of another program":
        save_file(load_file(other), path)
    elif case == "a folder":
        path.mkdir()
    assert read_tensors(path) is None and not claims_tensors(path)
