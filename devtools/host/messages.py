"""What a host says of a prompt: refusals, websocket messages, the record of its run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

Event = tuple[str, Any]

# The kinds of binary websocket message (the host's protocol.py).
BINARY_PREVIEW, BINARY_TEXT = 1, 3


class HostError(RuntimeError):
    """The host did not start, or ended early; the text holds the end of its log."""


class PromptRejected(ValueError):
    """The host refused a prompt (HTTP 400) before running it.

    `error` is the host's error dict, `node_errors` its errors by node id; the text sums up both.
    """

    def __init__(self, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> None:
        self.error = error
        self.node_errors = node_errors
        lines = [f"{error['message']} {error['details']}".strip()]
        for node_id, node in node_errors.items():
            lines += [f"node {node_id} ({node['class_type']}): {e['message']}: {e['details']}" for e in node["errors"]]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class NodeError:
    """Where and why a prompt failed while running."""

    node_id: str
    node_type: str
    exception_type: str
    exception_message: str


@dataclass(frozen=True)
class RunResult:
    """A finished prompt.

    `status` is "success", "error" or "interrupted"; `outputs` maps a node id to its UI output (as in /history); `events`
    are the (type, data) messages in their order, those kept in /history only where nobody listened (`Host.wait`).
    """

    prompt_id: str
    status: str
    outputs: dict[str, Any]
    events: list[Event]
    error: NodeError | None = None

    def messages(self, kind: str) -> list[Any]:
        """The data of all events of one type, such as "progress"."""
        return [data for name, data in self.events if name == kind]


def parse(message: aiohttp.WSMessage) -> Event | None:
    """A websocket message as (type, data); None for kinds that the host sends to its own page only."""
    if message.type == aiohttp.WSMsgType.TEXT:
        content = json.loads(message.data)
        return content["type"], content["data"]
    (kind,) = struct.unpack_from(">I", message.data)
    if kind == BINARY_PREVIEW:
        return "preview", message.data[8:]  # after the kind and the image format
    if kind == BINARY_TEXT:
        (length,) = struct.unpack_from(">I", message.data, 4)
        node, text = message.data[8 : 8 + length], message.data[8 + length :]
        return "progress_text", {"node": node.decode(), "text": text.decode()}
    return None


def concerns(event: Event, prompt_id: str) -> bool:
    """Whether an event belongs to this prompt; binary ones name none, but this client has only one prompt."""
    data = event[1]
    return not isinstance(data, dict) or data.get("prompt_id", prompt_id) == prompt_id


def result_of(prompt_id: str, record: Mapping[str, Any], events: list[Event]) -> RunResult:
    """The result of a finished prompt, from its entry in /history and the messages that were received."""
    messages = dict(record["status"]["messages"])
    status, error = record["status"]["status_str"], None
    if "execution_interrupted" in messages:
        status = "interrupted"  # the host files it under "error"
    elif "execution_error" in messages:
        failure = messages["execution_error"]
        error = NodeError(**{name: failure[name] for name in NodeError.__dataclass_fields__})
    return RunResult(prompt_id, status, record["outputs"], events, error)
