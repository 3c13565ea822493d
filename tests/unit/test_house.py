"""Rules of the house that no linter knows: who imports whom, what stands once, and that the map of the house is true."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import dev
from devtools import tree
from tests.helpers.places import COMFYUI, ROOT, comfyui_is_there

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("models/*/README.md")])
"""What people read."""


OURS = {"longvie_core", "devtools", "tests", "dev", "nodes"}
"""What this project calls itself in imports that are not relative; ``nodes`` alone is the host's."""


def source_files(*folders: str) -> list[Path]:
    """Python files below these folders of the repository, as git has them or would have them."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in listing if name.endswith(".py") and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """(dots in front, module, names) of every import of a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.skipif(not comfyui_is_there(), reason="no ComfyUI")
def test_the_import_contract_knows_every_module_of_the_host() -> None:
    """Those that the pack imports anywhere; the contract keeps them out of all wings but one."""
    (listed,) = re.findall(
        r"^forbidden_modules = (\[.*?\])", (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    absolute = (imports(path) for path in source_files("longvie_core", "nodes"))
    tops = {module.split(".")[0] for found in absolute for level, module, _ in found if level == 0}
    of_host = {top for top in tops if (COMFYUI / f"{top}.py").is_file() or (COMFYUI / top).is_dir()}
    assert of_host and of_host <= set(ast.literal_eval(listed))


def test_the_pack_names_itself_relatively() -> None:
    """The host loads it under whatever name its folder has."""
    wrong = {
        f"{named(path)}: {module}"
        for path in source_files("longvie_core", "nodes")
        for level, module, _ in imports(path)
        if level == 0 and module.split(".")[0] in OURS - {"nodes"}
    }
    assert wrong == set()


def test_no_room_uses_a_private_name_of_another() -> None:
    wrong = {
        f"{named(path)}: {module}.{name}"
        for path in source_files("longvie_core", "nodes", "devtools", "tests")
        for level, module, names in imports(path)
        for name in [*names, *module.split(".")]
        if name.startswith("_") and not name.startswith("__") and (level or module.split(".")[0] in OURS)
    }
    assert wrong == set()


def test_no_room_reaches_into_another() -> None:
    """``room._name``, where ``room`` was imported from this project."""
    wrong = set()
    for path in source_files("longvie_core", "nodes", "devtools"):
        rooms = {
            name.split(".")[-1]
            for level, module, names in imports(path)
            if level or module.split(".")[0] in OURS
            for name in names
        }
        wrong |= {
            f"{named(path)}: {node.value.id}.{node.attr}"
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in rooms
            if node.attr.startswith("_") and not node.attr.startswith("__")
        }
    assert wrong == set()


def test_every_module_says_what_it_is_for() -> None:
    silent = [
        named(path)
        for path in source_files("longvie_core", "nodes", "devtools", "tests", "dev.py", "__init__.py")
        if not (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").strip(" .")
        or "TODO" in (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "")
    ]
    assert silent == []


def test_the_hosts_minimum_is_the_same_everywhere() -> None:
    """pyproject.toml names it; the runtime check cannot read that where the pack is installed without it, and prose neither."""
    backend = (ROOT / "longvie_core" / "backends" / "comfy" / "host.py").read_text("utf-8")
    (minimum,) = re.findall(r"^MINIMUM_HOST = \((\d+), (\d+), (\d+)\)$", backend, re.MULTILINE)
    assert tuple(map(int, minimum)) == dev.host_minimum()
    text = ".".join(minimum)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"ComfyUI {text} or newer" in readme
    assert f"ComfyUI {dev.HOST_VERSION} in `.host`" in readme
    assert tuple(map(int, dev.HOST_VERSION.split("."))) >= dev.host_minimum()


def test_the_pinned_host_is_named_in_one_place() -> None:
    others = [
        named(path)
        for path in source_files(".")
        if path != ROOT / "dev.py" and re.search(r"ComfyUI-\d+\.\d+", path.read_text("utf-8"))
    ]
    assert others == []


# ---- docs/architecture.md


def test_the_map_of_the_house_is_true_and_whole() -> None:
    """Every folder and room that exists has its line, and what it says of itself."""
    page = tree.PAGE.read_text("utf-8")
    assert page == tree.with_tree(page), "run `python -m devtools.tree`"


def test_the_map_names_every_folder() -> None:
    """Counted apart from what draws it. Folders of recorded data and of help pages have a line, those in them have none."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *tree.TOP]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    folders = {folder for name in listing if (ROOT / name).is_file() for folder in Path(name).parents if folder != Path()}
    page = tree.PAGE.read_text("utf-8")
    unnamed = [folder for folder in sorted(folders) if not re.search(rf"^ *{re.escape(folder.name)}/", page, re.MULTILINE)]
    assert [folder for folder in unnamed if not re.search(r"/data/|^web/docs/", folder.as_posix())] == []


def test_paths_in_the_docs_exist() -> None:
    """A path in backticks is one of a file or folder here, or one that a command makes."""
    prefix = r"`((?:longvie_core|nodes|devtools|tests|docs|web|workflows|models/longvie-tiny)/[\w./-]*)`"
    missing = {
        f"{named(page)}: {path}"
        for page in PAGES
        for path in re.findall(prefix, page.read_text("utf-8"))
        if not (ROOT / path).exists()
    }
    assert missing == set()


def test_modules_in_the_docs_exist() -> None:
    """``longvie_core.room.name`` in backticks: the room is there, and it has that name."""
    wrong = set()
    for page in PAGES:
        for dotted in re.findall(r"`(longvie_core(?:\.\w+)+)`", page.read_text("utf-8")):
            parts = dotted.split(".")
            if not any(has_name(parts[:cut], parts[cut:]) for cut in range(len(parts), 0, -1)):
                wrong.add(f"{named(page)}: {dotted}")
    assert wrong == set()


def test_commands_in_the_docs_exist() -> None:
    """``python -m longvie_core.room`` and the like: a module that runs as a program."""
    wrong = set()
    for page in PAGES:
        for dotted in re.findall(r"-m ((?:longvie_core|devtools)[\w.]*)", page.read_text("utf-8")):
            base = ROOT.joinpath(*dotted.split("."))
            file = base / "__main__.py" if base.is_dir() else base.with_suffix(".py")
            if not file.is_file() or "__main__" not in file.read_text("utf-8"):
                wrong.add(f"{named(page)}: python -m {dotted}")
    assert wrong == set()


def has_name(module: list[str], names: list[str]) -> bool:
    """Whether a module's file is there and binds the first of the names, if there are any."""
    base = ROOT.joinpath(*module)
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    if not file.is_file():
        return False
    return (
        not names
        or re.search(rf"^(?:def |class |)\b{names[0]}\b|import .*\b{names[0]}\b", file.read_text("utf-8"), re.M) is not None
    )
