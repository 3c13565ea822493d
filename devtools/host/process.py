"""A real ComfyUI as a subprocess on a folder of its own: started, watched, stopped, killed, asked over HTTP."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from devtools.host.messages import HostError

AnyHost = TypeVar("AnyHost", bound="HostProcess")

# The folder name under custom_nodes that the pack is given, whatever its clone is called.
PACK_NAME = "longvie"
# Kills the host when this process ended without stopping it (kill -9): its pipe then closes with nothing written to it.
WATCHDOG = "import os, sys\nif not sys.stdin.buffer.read():\n    os.kill(int(sys.argv[1]), 9)"
# What a copy of the pack leaves out: hidden folders (.venv, .host, .git), caches and results.
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "demo_output")


@dataclass(eq=False)
class HostProcess:
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

    def __enter__(self: AnyHost) -> AnyHost:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
