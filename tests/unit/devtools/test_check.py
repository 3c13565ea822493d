"""The checks notice what they are for, and one that fails hides none of the others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from devtools import check
from tests.helpers.places import ROOT

pytest.importorskip("importlinter")
pytest.importorskip("mypy")

WRONG = {
    "lint": "import os\n",
    "format": "x   = 1\n",
    "imports": "from .run import loop\n\n__all__ = ['loop']\n",
    "types": 'def wrong(number: int) -> str:\n    return number\n\n\nwrong("one")\n',
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lowest rooms of the core, with all that is set up for it."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    core = tmp_path / "longvie_core"
    for name in ("generate.py", "checkpoint.py"):
        (core / name).parent.mkdir(exist_ok=True)
        (core / name).write_text('"""A door."""\n', encoding="utf-8")
    for wing in ("training", "run", "world", "bench", "control", "weights", "media", "model", "disk"):
        (core / wing).mkdir()
        (core / wing / "__init__.py").write_text('"""A wing."""\n', encoding="utf-8")
    for wing in ("backends", "backends/comfy", "backends/diffusers"):
        (core / wing).mkdir()
        (core / wing / "__init__.py").write_text('"""A wing."""\n', encoding="utf-8")
    (core / "backends" / "comfy" / "model.py").write_text('"""The one that may."""\n\nimport comfy.sd  # noqa: F401\n', "utf-8")
    (core / "__init__.py").write_text('"""All of them."""\n', encoding="utf-8")
    for room in ("plan.py", "finite.py", "interrupt.py"):
        (core / room).write_text('"""At the bottom."""\n', encoding="utf-8")
    (core / "run" / "loop.py").write_text('"""Above."""\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return core


def outcomes(printed: str) -> dict[str, str]:
    lines = (line.split(", ")[0].split(": ") for line in printed.splitlines() if line.startswith(tuple(check.CHECKS)))
    return {parts[0]: parts[1] for parts in lines if len(parts) == 2}


def test_all_pass_where_nothing_is_wrong(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 0
    assert outcomes(capsys.readouterr().out) == dict.fromkeys(check.CHECKS, "passed")


@pytest.mark.parametrize("name", WRONG)
def test_each_notices_what_it_is_for_and_the_others_run(copy: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (copy / "plan.py").write_text('"""At the bottom."""\n\n' + WRONG[name], encoding="utf-8")
    assert check.main([]) == 1
    found = outcomes(capsys.readouterr().out)
    assert found.keys() == check.CHECKS.keys() and found[name] == "failed"


def test_some_may_be_chosen_and_unknown_ones_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["lint"]) == 0
    assert outcomes(capsys.readouterr().out) == {"lint": "passed"}
    assert check.main(["spelling"]) == 2
    assert "there are lint, format, imports, types" in capsys.readouterr().err
