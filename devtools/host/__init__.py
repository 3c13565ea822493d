"""One real ComfyUI host as a subprocess: start it on a folder of its own, queue prompts over HTTP, read its websocket."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from devtools.host.messages import Event, HostError, NodeError, PromptRejected, RunResult, concerns, parse, result_of
from devtools.host.process import HostProcess

__all__ = ["Host", "HostError", "NodeError", "PromptRejected", "RunResult"]


class Host(HostProcess):
    """A host process that runs prompts; see :class:`~devtools.host.process.HostProcess` for how it is made."""

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
        return result_of(prompt_id, record, [(kind, data) for kind, data in record["status"]["messages"]])

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
                    event = parse(message)
                    if event is None or not concerns(event, prompt_id):
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
            return result_of(prompt_id, self.history(prompt_id), events)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError) as error:  # its last messages were under way when it ended
            raise HostError(f"the host ended while prompt {prompt_id} ran\n{self.log_tail()}") from error
