"""dev.py and what it starts elsewhere: which environment, which Pythons, which versions, and what it says."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import dev
from devtools import pythons
from devtools.constraints import __main__ as constraints
from devtools.versions import versions
from tests.helpers.places import ROOT

THIS = sys.version_info[:2]


def made(root: Path, config: str) -> None:
    (root / ".venv").mkdir()
    (root / ".venv" / "pyvenv.cfg").write_text(config)


class TestEnvironment:
    def test_the_first_python_gets_the_plain_name(self, tmp_path: Path) -> None:
        assert dev.environment_for((3, 13), root=tmp_path).folder == tmp_path / ".venv"

    @pytest.mark.parametrize("config", ["home = /x\nversion = 3.11.7\n", "version_info = 3.11.7.final.0\n"])
    def test_it_belongs_to_the_python_that_made_it(self, tmp_path: Path, config: str) -> None:
        made(tmp_path, config)
        assert dev.environment_for((3, 11), root=tmp_path).folder == tmp_path / ".venv"
        assert dev.environment_for((3, 1), root=tmp_path).folder == tmp_path / ".venv-3.1"
        assert dev.environment_for((3, 13), root=tmp_path).folder == tmp_path / ".venv-3.13"

    def test_what_python_itself_makes_is_known_again(self, tmp_path: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
        assert dev.environment_for(THIS, root=tmp_path).folder == tmp_path / ".venv"
        assert dev.environment_for((3, 9), root=tmp_path).folder == tmp_path / ".venv-3.9"

    def test_lowest_versions_have_one_of_their_own(self, tmp_path: Path) -> None:
        assert dev.environment_for((3, 10), lowest=True, root=tmp_path).folder == tmp_path / ".venv-3.10-lowest"

    def test_git_and_ruff_leave_them_alone(self) -> None:
        assert ".venv-*/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
        assert '".venv-*"' in (ROOT / "pyproject.toml").read_text("utf-8")


class TestLowestVersions:
    def test_every_direct_bound_becomes_a_pin(self, tmp_path: Path) -> None:
        (tmp_path / "requirements.txt").write_text("torch\nav>=16.0.0\nPillow\nkornia>=0.7.1\nnumpy>=1.25.0\nalembic>=1\n")
        lowest = dev.lowest_versions(tmp_path)
        own = [*dev._requirements(ROOT / "requirements.txt"), *dev.test_requirements()]
        assert {line.replace(">=", "==") for line in own if ">=" in line} <= set(lowest)
        assert "av==16.0.0" in lowest and f"numpy=={dev.HOST_RAISED['numpy']}" in lowest
        assert not [line for line in lowest if re.match("torch|Pillow|kornia|alembic", line)]

    def test_all_that_the_project_asks_for_has_a_lower_bound(self) -> None:
        for line in [*dev._requirements(ROOT / "requirements.txt"), *dev.test_requirements()]:
            assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line


class TestSayings:
    def test_a_newer_python_is_told_in_advance(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        environment = dev.Environment(tmp_path)
        dev.warn_of_new_python(environment, (3, 99))
        assert "Python 3.99 is newer than what LongVie was tested with" in capsys.readouterr().out
        for python in dev.PYTHONS:
            dev.warn_of_new_python(environment, python)
        environment.installed.write_text("torch\n")
        dev.warn_of_new_python(environment, (3, 99))
        assert capsys.readouterr().out == ""

    def test_an_older_python_can_parse_dev_py(self) -> None:
        """Else it shows a syntax error instead of the sentence."""
        ast.parse((ROOT / "dev.py").read_text("utf-8"), feature_version=(3, 7))

    @pytest.mark.parametrize("python", [(3, 6), (3, 7), (3, 8), (3, 9)])
    def test_an_older_python_is_refused(self, python: tuple[int, int], tmp_path: Path) -> None:
        executable = next(filter(None, (pythons._verified(path, python) for path in pythons._candidates(python))), None)
        if executable is None:
            pytest.skip(f"there is no Python {'.'.join(map(str, python))} on this machine")
        refused = subprocess.run([executable, ROOT / "dev.py", "demo"], capture_output=True, text=True, cwd=tmp_path)
        assert refused.returncode == 1
        assert re.fullmatch(r"dev\.py: Python 3\.10 to 3\.13 is needed, this is 3\.\d+\.\d+ \(.*\)\.\n", refused.stderr)
        assert refused.stdout == ""

    def test_project_and_readme_name_the_same_pythons(self) -> None:
        project = (ROOT / "pyproject.toml").read_text("utf-8")
        assert re.findall(r"Python :: (3)\.(\d+)", project) == [tuple(map(str, python)) for python in dev.PYTHONS]
        first, last = (".".join(map(str, python)) for python in (dev.PYTHONS[0], dev.PYTHONS[-1]))
        assert f'requires-python = ">={first}"' in project
        assert f"{first} to {last}" == dev.PYTHON_RANGE
        assert f"Python {dev.PYTHON_RANGE}" in (ROOT / "README.md").read_text("utf-8")

    def test_versions_are_one_line(self) -> None:
        assert re.fullmatch(rf"Python {THIS[0]}\.{THIS[1]}\.\d+ in \S+, torch \d\S+ \(.+\), av \d+.*, numpy \d.*", versions())


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.skipif(os.name == "nt", reason="shell scripts as stand-ins")
class TestFinder:
    """In a machine made of folders: what is run is real, a script or this Python."""

    OTHER = (3, 99)
    WORKS = '#!/bin/sh\necho 3 99 "$0"\n'
    REFUSES = '#!/bin/sh\necho "pyenv: python3.99: command not found" >&2\nexit 127\n'

    @pytest.fixture(autouse=True)
    def empty_machine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "shims"), str(tmp_path / "bin")]))
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.delenv("PYENV_ROOT", raising=False)

    def test_nothing_there(self) -> None:
        assert pythons.find_python(self.OTHER) is None

    def test_a_stand_in_that_refuses_is_passed_over(self, tmp_path: Path) -> None:
        executable(tmp_path / "shims" / "python3.99", self.REFUSES)
        assert pythons.find_python(self.OTHER) is None
        executable(tmp_path / "bin" / "python3.99", self.WORKS)
        assert pythons.find_python(self.OTHER) == tmp_path / "bin" / "python3.99"

    def test_one_of_another_version_is_passed_over(self, tmp_path: Path) -> None:
        executable(tmp_path / "bin" / "python3.99", "#!/bin/sh\necho 3 9 /x\n")
        assert pythons.find_python(self.OTHER) is None

    def test_pyenv_at_home_newest_release_first(self, tmp_path: Path) -> None:
        for release in ("3.99.2", "3.99.10", "3.9.18"):
            executable(tmp_path / "home" / ".pyenv" / "versions" / release / "bin" / "python3.99", self.WORKS)
        assert pythons.find_python(self.OTHER).parts[-3] == "3.99.10"

    def test_pyenv_elsewhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for root in ("said", "named"):
            executable(tmp_path / root / "versions" / "3.99.0" / "bin" / "python3.99", self.WORKS)
        executable(tmp_path / "bin" / "pyenv", f"#!/bin/sh\necho {tmp_path / 'said'}\n")
        assert pythons.find_python(self.OTHER).parts[-5] == "said"
        monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "named"))
        assert pythons.find_python(self.OTHER).parts[-5] == "named"

    def test_the_one_that_runs_this(self) -> None:
        found = pythons.find_python(THIS)
        assert found is not None and pythons._verified(str(found), THIS) == found


class TestPlan:
    OLD, MIDDLE, NEW = (3, 10), (3, 11), (3, 13)
    PARTS = "test tests/unit tests/parity tests/backend"

    def runs(self, found: list[tuple[int, int]], this: tuple[int, int]) -> list[tuple[str, str]]:
        planned = pythons.plan({version: Path(f"python{version[1]}") for version in found}, this)
        return [(run.python.name, " ".join(run.arguments)) for run in planned]

    def test_newest_whole_and_oldest_in_part(self) -> None:
        assert self.runs([self.OLD, self.MIDDLE, self.NEW], self.MIDDLE) == [
            ("python13", "test"),
            ("python13", "demo"),
            ("python10", self.PARTS),
            ("python10", "demo"),
            ("python10", "--lowest test tests/unit"),
        ]

    def test_what_dev_py_test_runs_is_not_run_again(self) -> None:
        assert self.runs([self.OLD, self.NEW], self.NEW)[0] == ("python13", "demo")
        assert self.runs([self.OLD, self.NEW], self.OLD)[2:] == [
            ("python10", "demo"),
            ("python10", "--lowest test tests/unit"),
        ]
        assert self.runs([self.MIDDLE], self.MIDDLE) == [("python11", "demo"), ("python11", "--lowest test tests/unit")]


class TestRecordedVersions:
    FILES = sorted((ROOT / "devtools" / "constraints").glob("*.txt"))

    @pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
    def test_each_is_a_pin_that_the_bounds_allow(self, file: Path) -> None:
        pins = dict(line.split("==") for line in dev._requirements(file))
        assert not {"torch", "torchvision", "torchaudio"} & pins.keys(), "dev.py pins these itself"
        for line in [*dev._requirements(ROOT / "requirements.txt"), *dev.test_requirements()]:
            requirement = Requirement(line)
            assert requirement.specifier.contains(pins[dev.package_name(line)]), line

    def test_they_hold_beside_the_pinned_host_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dev, "constraints_file", lambda python: self.FILES[0])
        assert dev.recorded_versions(dev.HOST) == dev._requirements(self.FILES[0])
        assert dev.recorded_versions(tmp_path) == []

    def test_a_python_without_them_takes_the_newest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dev, "THIS_PYTHON", (3, 99))
        assert dev.recorded_versions(dev.HOST) == []

    def test_recording_writes_what_is_installed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(dev, "ROOT", tmp_path)
        monkeypatch.setattr(dev, "constraints_file", lambda python: tmp_path / "here.txt")
        assert constraints.main() == 0
        pins = dict(line.split("==") for line in dev._requirements(tmp_path / "here.txt"))
        assert pins["numpy"] == version("numpy") and pins["pytest"] == version("pytest")
        assert not any(re.match("torch|nvidia|pip$", name) for name in pins.keys() - {"torchsde"})


class TestRunEverywhere:
    def run(self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], body: str) -> tuple[int, str]:
        script = tmp_path / "dev.py"
        script.write_text(f"import sys\n{body}")
        status = pythons.run_everywhere(script, [(3, 99), THIS], None, [])
        return status, capfdbinary.readouterr().out.decode()

    def test_all_well(self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
        body = "print('== 12 passed, 1 skipped in 0.50s ==') if '--lowest' in sys.argv else print('made', sys.argv[1:])"
        status, out = self.run(tmp_path, capfdbinary, body)
        assert status == 0
        assert "Python 3.99: not found on the path or under pyenv" in out
        assert "made ['demo']" in out and "== 12 passed, 1 skipped in 0.50s ==" in out
        summary = out.partition("=== in short")[2]
        assert re.search(r"lowest versions: dev.py --lowest test tests/unit: ok, \d+ s; 12 passed, 1 skipped in 0.50s", summary)

    def test_one_that_fails_is_told_and_the_rest_still_runs(
        self, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        status, out = self.run(tmp_path, capfdbinary, "sys.exit(3 * ('demo' in sys.argv))")
        summary = out.partition("=== in short")[2]
        assert status == 1
        assert "demo: FAILED (exit status 3)" in summary and "tests/unit: ok" in summary

    def test_no_python_at_all_is_no_failure(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert pythons.run_everywhere(tmp_path / "dev.py", [(3, 99)], None, []) == 0
        assert "nothing to run" in capsys.readouterr().out
