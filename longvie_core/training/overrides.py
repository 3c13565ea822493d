"""Settings with other values, each checked against the type that its setting declares."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")

RENAMED = MappingProxyType(
    {
        "learns": "trainable",
        "clips": "batch_size",
        "optimiser": "optimizer",
        "optimiser.rate": "optimizer.lr",
        "optimiser.betas": "optimizer.betas",
        "optimiser.weight_decay": "optimizer.weight_decay",
        "optimiser.matrix_rate": "optimizer.muon_lr",
        "training.accumulation": "training.grad_accum_steps",
        "training.clip_norm": "training.max_grad_norm",
        "training.average": "training.ema",
        "training.shared_state": "training.zero1",
    }
)
"""Names that a stage's settings had in version 0.1, and those that they have now."""


def override(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """A settings object with other values.

    Args:
        settings: a dataclass, whose fields may be dataclasses in turn.
        changes: values by dotted name, as JSON has them: ``{"first_frame.probability": 0.3, "histories": [0, 5]}``. An object
            replaces a whole part: ``{"depth": {}}`` switches ``depth`` on, with its defaults; ``None`` switches it off.

    Raises:
        ValueError: naming the setting that does not exist, or whose value is of another type or out of range.
    """
    values = dataclasses.asdict(settings)
    for path, value in sorted(changes.items(), key=lambda change: change[0].count(".")):  # a whole part before what is in it
        *parts, name = path.split(".")
        if name not in _names(type(settings), parts):
            raise ValueError(_unknown(type(settings), path))
        place = values
        for part in parts:
            place = place[part]
            if not isinstance(place, dict):
                part_path = ".".join(parts)
                raise ValueError(f"{path} cannot be set, because {part_path} is {json.dumps(place)}: set {part_path}={{}} too")
        place[name] = value
    try:
        return _checks(type(settings)).validate_json(json.dumps(values))  # JSON has lists for tuples
    except ValidationError as error:
        raise ValueError("; ".join(_sentence(settings, details) for details in error.errors())) from error


@cache
def _checks(kind: Any) -> TypeAdapter[Any]:
    """pydantic's checks of a settings class; ``| None``, because it takes no configuration for a bare dataclass."""
    return TypeAdapter(kind | None, config=STRICT)


def _names(kind: Any, parts: Sequence[str]) -> list[str]:
    """Names of the settings of a part; none where there is no such part, or where it is a single value."""
    for part in parts:
        hint = get_type_hints(kind).get(part)
        kind = next((inner for inner in (hint, *get_args(hint)) if dataclasses.is_dataclass(inner)), None)
        if kind is None:
            return []
    return [field.name for field in dataclasses.fields(kind)]


def _unknown(kind: type, path: str) -> str:
    """What to say of a name that no setting has."""
    *parts, name = path.split(".")
    for old in (path, *(".".join(parts[:count]) for count in range(len(parts), 0, -1))):
        if old in RENAMED:
            return f"the setting {old!r} is called {RENAMED[old]!r} now"
    names = _names(kind, parts)
    if close := get_close_matches(name, names, n=1):
        return f"there is no setting {path!r}: did you mean {'.'.join([*parts, *close])!r}?"
    within = ".".join(parts)
    if names:
        return f"there is no setting {path!r}; {within or 'the stage'} has: {', '.join(names)}"
    return f"there is no setting {path!r}: {within!r} is a single value, or does not exist"


def _sentence(settings: object, details: ErrorDetails) -> str:
    """What is wrong with a value, and the mend."""
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in details["loc"]).removeprefix(".")
    if details["type"] == "value_error":  # from a settings object itself: out of range
        return f"{path}: {details['ctx']['error']}" if path else str(details["ctx"]["error"])
    if details["type"] == "unexpected_keyword_argument":
        return _unknown(type(settings), path)
    if details["type"] == "missing":
        return f"{path} is missing"
    if details["type"] == "dataclass_type":
        mend = "give an object of its settings ({} = the defaults), or null where it can be switched off"
    else:
        mend = details["msg"].replace("Input ", "It ", 1) + _example(settings, details["loc"])
        mend = mend[0].lower() + mend[1:]
    return f"{path} is {json.dumps(details['input'])}: {mend}"


def _example(settings: Any, place: Sequence[str | int]) -> str:
    """The value that the settings have there now, where they have one."""
    for step in place:
        try:
            settings = settings[step] if isinstance(step, int) else getattr(settings, step)
        except (AttributeError, IndexError, TypeError):
            return ""
    return f", such as {json.dumps(settings)}"
