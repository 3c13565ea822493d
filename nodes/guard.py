"""What holds for every node's work: broken numbers are refused by the widget's name, and the user can interrupt it."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import io

from ..longvie_core.finite import finite
from ..longvie_core.interrupt import asking


def guard(node: type[io.ComfyNode]) -> None:
    """Put both around a node's ``execute``.

    Not around its ``validate_inputs`` and ``fingerprint_inputs``: an interrupt that is raised there would end the host's own
    thread, and the host lets a widget that ``validate_inputs`` asks for go unchecked by its limits.
    """
    execute = node.execute.__func__

    @functools.wraps(execute)
    def guarded(cls: type[io.ComfyNode], **inputs: object) -> io.NodeOutput:
        check_numbers(inputs)
        with asking(throw_exception_if_processing_interrupted):
            return execute(cls, **inputs)

    node.execute = classmethod(guarded)


def check_numbers(inputs: Mapping[str, object]) -> None:
    """Refuse NaN and infinities among the widgets of a node, those of a dynamic choice included.

    The host compares a number with its widget's limits, which NaN passes, and not even that where a link brings it.

    Raises:
        ValueError: naming the widget.
    """
    for name, value in inputs.items():
        if isinstance(value, float):
            finite(**{name: value})
        elif isinstance(value, Mapping):
            check_numbers({key: inner for key, inner in value.items() if isinstance(inner, float)})
