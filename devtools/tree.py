"""``python -m devtools.tree``: the tree in docs/architecture.md drawn anew, a line a room, from what each says of itself."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dev

PAGE = dev.ROOT / "docs" / "architecture.md"
BEGIN, END = "```text\n", "```\n"

TOP = ("longvie_core", "nodes", "devtools", "tests", "web", "workflows")
"""Folders that are drawn, in this order."""

WITH_FILES = ("longvie_core", "nodes", "devtools")
"""Those whose files have a line each."""

FOLDERS = {
    "nodes": "ComfyUI's nodes, one file a stage, thin: sockets in, a call of longvie_core, sockets out",
    "tests": "real ones: the host is a ComfyUI, the reference's numbers are recorded",
    "tests/backend": "the host's classes in this process, with tiny seeded weights",
    "tests/data": "files that other versions of this project have written",
    "tests/host": "a real ComfyUI over HTTP",
    "tests/host/longvie_fault_pack": "a pack that breaks writing at chosen moments",
    "tests/host/longvie_test_pack": "nodes that only tests need",
    "tests/parity/data": "these tensors, the smaller ones",
    "tests/parity": "against tensors that the reference implementation computed",
    "tests/unit": "the wings by themselves, in folders of their names",
    "tests/unit/weights/data": "keys and shapes of the published files",
    "web": "what the host shows on its page",
    "web/docs": "a help page a node",
    "workflows": "the templates as the page loads them, with a picture each",
    "workflows/api": "the same graphs in API form",
}
"""What a folder is for, where it has no ``__init__.py`` that says so."""


def tracked_files() -> list[Path]:
    """Files that git has or would take, relative to the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *TOP]
    listing = subprocess.run(command, cwd=dev.ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(Path(name) for name in listing if (dev.ROOT / name).is_file())


def first_sentence(file: Path) -> str:
    """The first line of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse((dev.ROOT / file).read_text("utf-8"))) or ""
    return docstring.partition("\n")[0].rstrip(".")


def drawn_folders(files: list[Path]) -> list[Path]:
    """Every folder with a file in or below it, but not those of one kind of file in a folder of their own."""
    folders = {parent for file in files for parent in file.parents if parent != Path()}
    alike = ("data", "web/docs")
    return sorted(folder for folder in folders if not any(str(parent).endswith(alike) for parent in folder.parents))


def tree() -> str:
    """The tree as text: a folder's files before its folders, each indented below it, with a line that says what it is."""
    files = tracked_files()
    folders = drawn_folders(files)

    def lines(folder: Path) -> Iterator[tuple[str, str]]:
        depth = len(folder.parts) - 1
        module = folder / "__init__.py"
        yield (
            "  " * depth + folder.name + "/",
            FOLDERS.get(folder.as_posix()) or (first_sentence(module) if module in files else ""),
        )
        for file in files:
            drawn = folder.parts[0] in WITH_FILES and file.suffix == ".py" and file.name != "__init__.py"
            if file.parent == folder and drawn:
                yield "  " * (depth + 1) + file.name, first_sentence(file)
        for inner in folders:
            if inner.parent == folder:
                yield from lines(inner)

    drawn = [line for top in TOP for line in lines(Path(top))]
    width = max(len(name) for name, _ in drawn) + 2
    return "".join(f"{name:<{width}}{what}".rstrip() + "\n" for name, what in drawn)


def with_tree(page: str) -> str:
    """The page with its first code block replaced by the tree as it is now."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} has no ```text block for the tree: restore it")
    return before + begin + tree() + end + after


def main() -> int:
    """Command line; returns the exit code."""
    PAGE.write_text(with_tree(PAGE.read_text("utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
