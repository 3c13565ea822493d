"""What the host's model files hold: the part of a clip's fingerprint that no name, place or time changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths

import nodes as host_nodes

from ..longvie_core.disk.contents import ContentMemory, content_fingerprint
from ..longvie_core.disk.fingerprints import file_stamp

MAX_FILE_NAME = 255

SHOWN_BYTES = 1 << 30
"""Size from which reading a file shows on the node's progress bar."""


@dataclass(frozen=True)
class GraphFingerprint:
    """What a node, with everything upstream of it, is known by.

    Args:
        content: hash in which model files count by what they hold: it stays when they are renamed, copied or touched.
        former: hash as LongVie 0.1 made it: they count by name, size and time.
    """

    content: str
    former: str


@lru_cache(maxsize=1)
def content_memory() -> ContentMemory:
    """What is known of the files that were read, in ``<user>/longvie/contents.json``."""
    return ContentMemory(Path(folder_paths.get_user_directory()) / "longvie" / "contents.json")


def content_of(path: Path) -> str:
    """Hash of what a file or folder holds. It is read once; interrupting ends that."""
    return content_fingerprint(path, content_memory(), reading_progress)


def reading_progress(done: int, size: int) -> None:
    """Show how far a file is read, and end when the user interrupts."""
    comfy.model_management.throw_exception_if_processing_interrupted()
    if size >= SHOWN_BYTES:
        comfy.utils.ProgressBar(size).update_absolute(done)


def graph_fingerprint(dynprompt: object, node_id: str, input_name: str | None = None) -> GraphFingerprint:
    """Fingerprint of a node and of everything upstream of it.

    Args:
        dynprompt: the host's hidden DYNPROMPT.
        node_id: the node.
        input_name: only what is upstream of this input; ``None`` = the node itself and all its inputs.
    """

    def fingerprint(describe: Callable[[Mapping[str, Any], str, object], object]) -> str:
        graph = _Graph(dynprompt, describe)
        return graph.hash_of_node(node_id) if input_name is None else graph.hash_of_input(node_id, input_name)

    return GraphFingerprint(fingerprint(_by_content), fingerprint(_by_stamp))


class _Graph:
    """Hashes of nodes and of what is upstream of them; ``describe`` says what a widget's value counts as."""

    def __init__(self, dynprompt: object, describe: Callable[[Mapping[str, Any], str, object], object]) -> None:
        self.dynprompt = dynprompt
        self.describe = describe
        self._hashes: dict[str, str] = {}

    def hash_of_node(self, node_id: str) -> str:
        if node_id not in self._hashes:
            node = self.dynprompt.get_node(node_id)
            inputs = {name: self._described(node, name) for name in sorted(node["inputs"])}
            text = json.dumps([node["class_type"], inputs], sort_keys=True, default=str)
            self._hashes[node_id] = hashlib.sha256(text.encode()).hexdigest()
        return self._hashes[node_id]

    def hash_of_input(self, node_id: str, name: str) -> str:
        described = self._described(self.dynprompt.get_node(node_id), name)
        return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()

    def _described(self, node: Mapping[str, Any], name: str) -> object:
        value = node["inputs"].get(name)
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return ["link", self.hash_of_node(value[0]), value[1]]
        return self.describe(node, name, value)


def _by_stamp(_node: Mapping[str, Any], _name: str, value: object) -> object:
    """A text, with size and time of the file that it names in any of the host's model folders."""
    if not isinstance(value, str):
        return value
    path = next(iter(model_files(value).values()), None)
    return [value] if path is None else [value, *file_stamp(path)]


def _by_content(node: Mapping[str, Any], name: str, value: object) -> object:
    """What the file holds that a choice names, instead of its name; of a text that is typed in, the text counts as well."""
    if isinstance(value, str):
        options = options_of(node["class_type"], name)
        if value not in options:
            return [value, *_contents(model_files(value))]
        contents = _contents(meant_files(value, options))
        return ["content", *contents] if contents else [value]
    if isinstance(value, Mapping):  # nodes with rows of widgets, such as a stack of LoRAs
        return {key: _by_content(node, "", item) for key, item in value.items()}
    return [_by_content(node, "", item) for item in value] if isinstance(value, list) else value


def _contents(files: Mapping[str, Path]) -> list[str]:
    return sorted({content_of(path) for path in files.values()})


def options_of(class_type: str, name: str) -> Collection[object]:
    """What a node's input can be chosen from; nothing where it is no choice."""
    types = host_nodes.NODE_CLASS_MAPPINGS[class_type].INPUT_TYPES()
    kind, *details = {**types.get("required", {}), **types.get("optional", {})}.get(name, ("",))
    if isinstance(kind, list):
        return kind
    return details[0].get("options", ()) if kind == "COMBO" and details else ()


def model_files(name: str) -> dict[str, Path]:
    """The files of this name in the host's model folders, by kind of folder."""
    if not name or len(name) > MAX_FILE_NAME or "\n" in name:
        return {}
    paths = {kind: folder_paths.get_full_path(kind, name) for kind in folder_paths.folder_names_and_paths}
    return {kind: Path(path) for kind, path in paths.items() if path}


def meant_files(name: str, options: Collection[object]) -> dict[str, Path]:
    """The files that a choice can mean, by kind of folder.

    The host does not say which kind a choice is made of. Where several have a file of this name, it is one whose files can
    all be chosen, and the one with the most of them. Where that leaves several, all of them count: better a clip too many is
    rendered than one kept that other weights made.
    """
    files = model_files(name)
    if len(files) < 2:
        return files
    listed = {kind: frozenset(folder_paths.get_filename_list(kind)) for kind in files}
    whole = {kind: names for kind, names in listed.items() if names <= frozenset(options)}
    largest = {kind for kind, names in whole.items() if not any(names < other for other in whole.values())}
    return {kind: path for kind, path in files.items() if not largest or kind in largest}
