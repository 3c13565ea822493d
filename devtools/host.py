"""One real ComfyUI host as a subprocess: start it on a folder of its own, queue prompts over HTTP, read its websocket."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

Event = tuple[str, Any]

# The folder name under custom_nodes that the pack is given, whatever its clone is called.
PACK_NAME = "longvie"
# The kinds of binary websocket message (the host's protocol.py).
BINARY_PREVIEW, BINARY_TEXT = 1, 3
# Kills the host when this process ended without stopping it (kill -9): its pipe then closes with nothing written to it.
WATCHDOG = "import os, sys\nif not sys.stdin.buffer.read():\n    os.kill(int(sys.argv[1]), 9)"
# What a copy of the pack leaves out: hidden folders (.venv, .host, .git), caches and results.
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "demo_output")


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


@dataclass(eq=False)
class Host:
    """A headless ComfyUI on CPU, with `base` as its --base-directory and only our pack and `extra_packs` loaded.

    comfyui: folder with the host's main.py. base: made if missing; models, input, output and user lie there, and the
    log, host.log. pack: the repository root. args: further command line arguments. env: added to this process's
    environment. Use it as a context manager; no way of ending this process leaves the host running.
    """

    comfyui: Path
    base: Path
    pack: Path
    extra_packs: Sequence[Path] = ()
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.comfyui, self.base, self.pack = (path.resolve() for path in (self.comfyui, self.base, self.pack))
        self.log = self.base / "host.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        # A proxy that the environment names must not see requests to this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def __enter__(self) -> Host:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- the process

    def start(self, timeout: float = 180) -> None:
        """Start the host and wait until it answers with every pack loaded; HostError, with its log's end, otherwise."""
        if self._process is not None:
            raise HostError(f"the host on {self.base} runs already: stop it first")
        names = self._lay_out_base()
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **self.env}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(port, names),
                cwd=self.comfyui,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._watchdog = subprocess.Popen(
            [sys.executable, "-c", WATCHDOG, str(self._process.pid)], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        atexit.register(self.kill)
        try:
            self._wait_until_ready(timeout)
            self._check_packs(names)
        except BaseException:
            self.kill()
            raise

    def _lay_out_base(self) -> list[str]:
        for folder in ("custom_nodes", "input", "output", "user", "models", "empty_page"):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        packs = {PACK_NAME: self.pack, **{path.name: path.resolve() for path in self.extra_packs}}
        for name, path in packs.items():
            _link_or_copy(path, self.base / "custom_nodes" / name)
        return list(packs)

    def _command(self, port: int, packs: list[str]) -> list[str]:
        return [
            *(sys.executable, "main.py", "--cpu", "--use-pytorch-cross-attention"),
            *("--port", str(port), "--base-directory", str(self.base)),
            *("--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs, "--disable-api-nodes"),
            # An empty page folder stands for the frontend package, which a headless host can do without.
            *("--front-end-root", str(self.base / "empty_page")),
            # Not moved by --base-directory.
            *("--database-url", f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"),
            *("--preview-method", "latent2rgb"),
            *self.args,
        ]

    def _wait_until_ready(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            if self._process.poll() is not None:
                raise HostError(f"the host ended with status {self._process.returncode} while starting\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HostError(f"the host did not answer within {timeout:.0f} s\n{self.log_tail()}")
            time.sleep(0.1)

    def _check_packs(self, names: list[str]) -> None:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for end, line in enumerate(lines):
            name = Path(line.rpartition(": ")[2].strip()).name
            if "(IMPORT FAILED)" in line and name in names:
                start = next((i for i, earlier in enumerate(lines[:end]) if "Traceback" in earlier), max(end - 60, 0))
                raise HostError("\n".join([f"the host could not import the pack {name}:", *lines[start : end + 1]]))

    def stop(self) -> None:
        """Ask the host to end, and kill it if it has not within 10 s; does nothing where none runs."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self.kill()

    def kill(self) -> None:
        """End the host at once, as a power cut would; does nothing where none runs."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        # Any input tells the watchdog that its work is done; Ctrl-C may have ended it before.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._watchdog.communicate(b"stopped", timeout=10)
        self._process = self._watchdog = None
        atexit.unregister(self.kill)

    def rss_mib(self) -> float:
        """Resident memory of the host process, in MiB."""
        return psutil.Process(self._process.pid).memory_info().rss / 2**20

    def log_tail(self, lines: int = 60) -> str:
        """The last lines of the host's log."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join([f"--- end of {self.log}", *text.splitlines()[-lines:]])

    # ---- HTTP

    def get(self, path: str) -> Any:
        """GET a path of the host and return the parsed JSON answer; urllib's HTTPError on a status of 400 or more."""
        return self._request(urllib.request.Request(self.url + path))

    def post(self, path: str, data: Any) -> Any:
        """POST JSON to a path of the host and return the parsed JSON answer, None where it is empty."""
        body = json.dumps(data).encode()
        return self._request(urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"}))

    def _request(self, request: urllib.request.Request) -> Any:
        with self._opener.open(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """The host's description of all nodes, or of one (KeyError where there is none of that id)."""
        return self.get("/object_info") if node is None else self.get(f"/object_info/{node}")[node]

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The host's record of a finished prompt, None while there is none."""
        return self.get(f"/history/{prompt_id}").get(prompt_id)

    def queue(self, prompt: Mapping[str, Any], client_id: str) -> str:
        """Queue a prompt (API format) for a websocket client and return its id; PromptRejected where a node is refused.

        The host answers HTTP 400 only when no output is left to run; a part of the graph it would leave out silently.
        """
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": client_id})
            if not answer["node_errors"]:
                return answer["prompt_id"]
            self.interrupt(answer["prompt_id"])
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            answer["error"] = {"message": "a part of the workflow is refused", "details": ""}
        except urllib.error.HTTPError as refusal:
            if refusal.code != 400:
                raise
            answer = json.load(refusal)
        raise PromptRejected(answer["error"], answer["node_errors"])

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Interrupt the running prompt, or only the one named."""
        self.post("/interrupt", {} if prompt_id is None else {"prompt_id": prompt_id})

    # ---- running prompts

    def submit(self, prompt: Mapping[str, Any]) -> str:
        """Queue a prompt that nobody listens to, and return its id."""
        return self.queue(prompt, client_id=uuid.uuid4().hex)

    def wait(self, prompt_id: str, timeout: float = 600) -> RunResult:
        """Wait until a prompt has ended and return its record; TimeoutError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (record := self._history_of_live_host(prompt_id)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"prompt {prompt_id} did not end within {timeout:.0f} s\n{self.log_tail()}")
            time.sleep(0.1)
        return _result(prompt_id, record, [(kind, data) for kind, data in record["status"]["messages"]])

    def _history_of_live_host(self, prompt_id: str) -> dict[str, Any] | None:
        try:
            return self.history(prompt_id)
        except OSError as error:
            raise HostError(f"the host is gone: {error}\n{self.log_tail()}") from error

    def run(
        self, prompt: Mapping[str, Any], on_event: Callable[[str, Any], None] | None = None, timeout: float = 600
    ) -> RunResult:
        """Queue a prompt and follow it to its end.

        on_event gets each message of this prompt as it comes: the host's type and data ("progress", "executed", ...),
        ("preview", image file bytes) and ("progress_text", {"node", "text"}). Raises PromptRejected, TimeoutError, and
        HostError where the host ends meanwhile. A prompt that fails or is interrupted does not raise: see `status`.
        """
        return asyncio.run(self._run(prompt, on_event or (lambda kind, data: None), timeout))

    async def _run(self, prompt: Mapping[str, Any], on_event: Callable[[str, Any], None], timeout: float) -> RunResult:
        client_id = uuid.uuid4().hex
        events: list[Event] = []

        async def follow() -> str:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"{self.url}/ws?clientId={client_id}", max_msg_size=0) as websocket,
            ):
                await websocket.receive()  # the greeting: from here on the host knows this client
                prompt_id = self.queue(prompt, client_id)
                async for message in websocket:
                    if message.type == aiohttp.WSMsgType.ERROR:
                        break
                    event = _parse(message)
                    if event is None or not _concerns(event, prompt_id):
                        continue
                    events.append(event)
                    on_event(*event)
                    # Only this one, sent after "execution_success", promises that /history has the entry.
                    if event[0] == "executing" and event[1]["node"] is None:
                        return prompt_id
            raise HostError(f"the host closed the connection while prompt {prompt_id} ran\n{self.log_tail()}")

        try:
            prompt_id = await asyncio.wait_for(follow(), timeout)
        except asyncio.TimeoutError as error:
            raise TimeoutError(f"the prompt did not end within {timeout:.0f} s\n{self.log_tail()}") from error
        try:
            return _result(prompt_id, self.history(prompt_id), events)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError) as error:  # its last messages were under way when it ended
            raise HostError(f"the host ended while prompt {prompt_id} ran\n{self.log_tail()}") from error


def _parse(message: aiohttp.WSMessage) -> Event | None:
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


def _concerns(event: Event, prompt_id: str) -> bool:
    """Whether an event belongs to this prompt; binary ones name none, but this client has only one prompt."""
    data = event[1]
    return not isinstance(data, dict) or data.get("prompt_id", prompt_id) == prompt_id


def _result(prompt_id: str, record: Mapping[str, Any], events: list[Event]) -> RunResult:
    messages = dict(record["status"]["messages"])
    status, error = record["status"]["status_str"], None
    if "execution_interrupted" in messages:
        status = "interrupted"  # the host files it under "error"
    elif "execution_error" in messages:
        failure = messages["execution_error"]
        error = NodeError(**{name: failure[name] for name in NodeError.__dataclass_fields__})
    return RunResult(prompt_id, status, record["outputs"], events, error)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _link_or_copy(pack: Path, target: Path) -> None:
    """Put a pack into custom_nodes: a link, or a fresh copy where links need rights (Windows)."""
    if target.is_symlink():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    try:
        target.symlink_to(pack, target_is_directory=True)
    except OSError:
        shutil.copytree(pack, target, ignore=NOT_COPIED)
