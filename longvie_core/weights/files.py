"""A backbone's or VAE's weights wherever they lie: one original file, or a diffusers file or folder, also in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from .header import MAX_NAMED, json_object, named_keys, read_header
from .layouts import BACKBONE, VAE, KeyNames, backbone_prefix

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_CONFIG = "config.json"
"""Names of the files in a folder that diffusers saves."""


@dataclass(frozen=True)
class Weights:
    """Header of a backbone or VAE in either layout, under its original keys; nothing of its tensors is read yet.

    Attributes:
        name: file or folder, for errors.
        names: which kind of network.
        diffusers: whether it has the diffusers layout.
        where: for every original key the file and the key in it.
        shapes, dtypes: by original key.
        metadata: text metadata of the (first) file.
        config: ``config.json`` of a diffusers folder, else empty.
    """

    name: str
    names: KeyNames
    diffusers: bool
    where: dict[str, tuple[Path, str]]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    config: dict

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], Tensor]]:
        """A function that reads one tensor by its original key, good inside the ``with`` block."""
        with ExitStack() as stack:
            paths = {path for path, _ in self.where.values()}
            files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
            yield lambda key: files[self.where[key][0]].get_tensor(self.where[key][1])


def read_weights(path: Path) -> Weights:
    """Read the header of a Wan backbone or VAE: an original file, or a file or folder (also in shards) of diffusers.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: not safetensors, or a key that neither network has.
    """
    config = _read_json_object(path / DIFFUSERS_CONFIG) if path.is_dir() else {}
    files = [read_header(file) for file in (_folder_files(path) if path.is_dir() else [path])]
    stored = {key: file for file in files for key in file.shapes}
    # Some diffusers files hold a norm that no network reads; diffusers drops it as well.
    kept = [key for key in stored if not key.endswith("norm_added_q.weight")]
    prefix = backbone_prefix(kept)
    names, diffusers = _recognised({key.removeprefix(prefix) for key in kept}, path.name)
    where, unknown = {}, []
    for key in kept:
        bare = key.removeprefix(prefix)
        try:
            original = names.to_original(bare) if diffusers else names.to_original(names.to_diffusers(bare))
        except KeyError:
            unknown.append(key)
        else:
            where[original] = (stored[key].path, key)
    if unknown:
        raise ValueError(f"{path.name} is no plain {names.kind}: {named_keys('unexpected', sorted(unknown))}")
    where = dict(sorted(where.items()))  # as the safetensors library writes them: there and back gives equal bytes
    return Weights(
        path.name,
        names,
        diffusers,
        where,
        {key: stored[name].shapes[name] for key, (_, name) in where.items()},
        {key: stored[name].dtypes[name] for key, (_, name) in where.items()},
        files[0].metadata,
        config,
    )


def _recognised(keys: set[str], name: str) -> tuple[KeyNames, bool]:
    """Kind of network, and whether its keys are diffusers', by a key that only that layout has."""
    marks = {
        "head.modulation": (BACKBONE, False),
        "condition_embedder.time_proj.weight": (BACKBONE, True),
        "decoder.head.0.gamma": (VAE, False),
        "decoder.norm_out.gamma": (VAE, True),
    }
    for mark, found in marks.items():
        if mark in keys:
            return found
    raise ValueError(f"{name} is neither a Wan backbone nor a Wan 2.1 VAE (it has {', '.join(sorted(keys)[:MAX_NAMED])}, ...)")


def _folder_files(folder: Path) -> list[Path]:
    """Weight files of a diffusers folder, in order; names in its index that lead elsewhere are refused."""
    index = folder / f"{DIFFUSERS_WEIGHTS}.index.json"
    if not index.is_file():
        return [folder / DIFFUSERS_WEIGHTS]
    shards = _read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and Path(name).name == name for name in shards.values()):
        raise ValueError(f"{index} holds no 'weight_map' of file names beside it")
    return [folder / name for name in sorted(set(shards.values()))]


def _read_json_object(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that diffusers has saved (such as .../transformer)")
    return json_object(path.read_text(encoding="utf-8"), str(path))
