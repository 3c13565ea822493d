"""Kill the host at random moments of four-clip runs, start it again, and compare every run with one that nothing happened to.

The moments are drawn evenly over the time that an uninterrupted run takes. Every host has loaded the weights before, by
queueing the finished run again, so that the kills hit the run and not the loading.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
from safetensors.numpy import load_file

from devtools.host import Host
from devtools.tiny import load_random, write_tiny_weights
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.scene import make_scene

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = ROOT / "workflows" / "api" / "longvie_tiny_from_control_clips.json"
SIZE, FRAMES, CLIPS, STEPS = 32, 9, 4, 2
SCENE = "four_clips"
REFERENCE = "reference"
PATIENCE = 600
"""Seconds after which a run that nobody interrupts has failed."""
POLL = 0.05
"""Seconds between two looks at whether a run has ended."""


class Relay:
    """Two hosts on one output folder: where one is killed the other takes over, and the first is started again meanwhile."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._starter = ThreadPoolExecutor(len(hosts))
        self._hosts = [(host, self._starter.submit(host.start)) for host in hosts]

    def host(self, which: int = 0) -> Host:
        """The host whose turn it is (0) or the other one (1), running."""
        host, started = self._hosts[which]
        started.result()
        return host

    def kill(self) -> None:
        """SIGKILL the host whose turn it is, if it is not dead already; the other one is next."""
        host, _ = self._hosts.pop(0)
        host.kill()
        self._hosts.append((host, self._starter.submit(host.start)))

    def close(self) -> None:
        """End both."""
        self._starter.shutdown()
        for host, _ in self._hosts:
            host.stop()


def make_hosts(comfyui: Path, base: Path, models: Path, **options: object) -> list[Host]:
    """Two hosts, not started, that share ``base / "output"`` and have the weights and the control clips each."""
    plan = ClipPlan(SIZE, SIZE, FRAMES, Fraction(16), source_frames=1 + (FRAMES - 1) * CLIPS)
    write_scene_clips(base / SCENE, make_scene(3), plan, TrackGrid(4, 4), time_scale=3.0)
    hosts = []
    for name in ("one", "other"):
        shutil.copytree(models, base / name / "models")
        shutil.copytree(base / SCENE, base / name / "input" / SCENE)
        output = ["--output-directory", str(base / "output")]
        hosts.append(Host(comfyui, base / name, ROOT, args=output, **options))
    return hosts


def workflow(run_name: str) -> dict:
    """The tiny workflow at this benchmark's size, with random weights."""
    prompt = load_random(json.loads(WORKFLOW.read_text(encoding="utf-8")))
    values = {
        "LongVieLoadClips": {"folder": SCENE, "width": SIZE, "height": SIZE},
        "LongVieSigmas": {"steps": STEPS},
        "LongVieClipLoop": {"run_name": run_name},
    }
    for node in prompt.values():
        node["inputs"].update(values.get(node["class_type"], {}))
    return prompt


class RunFolder:
    """A run's folder, read without the pack's own code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def finished(self) -> dict[int, list[tuple[int, str]]]:
        """Time and hash of the files of every clip that the manifest calls finished, by clip from 1."""
        return {clip: [_state(path) for path in paths] for clip, paths in enumerate(self._files(), 1)}

    def content(self) -> str:
        """Hash of all latents, tails, clip videos and decoded frames of the final video, and of what half-written is left."""
        digest = hashlib.sha256()
        clips = self._files()
        digest.update(f"{len(clips)} clips".encode())
        for video, tensors in clips:
            digest.update(video.read_bytes())
            for name, tensor in sorted(load_file(tensors).items()):
                digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode() + tensor.tobytes())
        with av.open(str(self.path / self._manifest()["videos"][-1]["file"]["name"])) as container:
            for frame in container.decode(video=0):
                digest.update(frame.to_ndarray(format="rgb24").tobytes())
        digest.update(repr(sorted(path.name for path in self.path.rglob("*.part"))).encode())
        return digest.hexdigest()

    def _manifest(self) -> dict:
        path = self.path / "run.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {"takes": [], "sequence": []}

    def _files(self) -> list[tuple[Path, Path]]:
        """Video and latents of each clip of the run's sequence."""
        manifest = self._manifest()
        takes = {(take["clip"], take["fingerprint"]): take for take in manifest["takes"]}
        clips = [takes[name] for name in enumerate(manifest["sequence"])]
        return [(self.path / take["video"]["name"], self.path / take["latents"]["name"]) for take in clips]


def _state(path: Path) -> tuple[int, str]:
    return path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()


def run_for(host: Host, prompt: dict, seconds: float) -> str:
    """Run a prompt for at most so many seconds; its status, or "running"."""
    end = time.monotonic() + seconds
    prompt_id = host.submit(prompt)
    while time.monotonic() < end:
        record = host.history(prompt_id)
        if record is not None:
            return record["status"]["status_str"]
        time.sleep(min(POLL, max(end - time.monotonic(), 0)))
    return "running"


class Faults:
    """Kills, and what became of the runs."""

    def __init__(self, relay: Relay, output: Path, seed: int) -> None:
        self.relay = relay
        self.output = output
        self.random = random.Random(seed)
        self.kills = self.resumed = self.lost_clips = self.unequal = 0
        for name in (REFERENCE, "timed"):
            started = time.monotonic()
            if run_for(relay.host(), workflow(name), PATIENCE) != "success":
                raise RuntimeError(f"an uninterrupted run failed\n{relay.host().log_tail()}")
        self.fresh = False
        self.seconds = time.monotonic() - started
        self.expected = RunFolder(output / REFERENCE).content()
        if RunFolder(output / "timed").content() != self.expected:
            raise RuntimeError("two uninterrupted runs are not equal: there is nothing to compare with")
        print(f"an uninterrupted run takes {self.seconds:.2f} s", flush=True)

    def host(self) -> Host:
        """The host whose turn it is, its weights loaded."""
        host = self.relay.host()
        if self.fresh and run_for(host, workflow(REFERENCE), PATIENCE) != "success":
            raise RuntimeError(f"the finished run failed when it was queued again\n{host.log_tail()}")
        self.fresh = False
        return host

    def run(self, name: str, kills: int) -> None:
        """One run to its end, killed at random moments until there were so many kills in all."""
        folder, finished, was_killed = RunFolder(self.output / name), {}, False
        while True:
            left = self.random.uniform(0, self.seconds) if self.kills < kills else PATIENCE
            status = run_for(self.host(), workflow(name), left)
            if status == "running" and self.kills < kills:
                self.relay.kill()
                self.fresh = True
            now = folder.finished()
            self.resumed += was_killed and status in ("success", "running")
            self.lost_clips += sum(now.get(clip) != state for clip, state in finished.items())
            if status != "running" or self.kills >= kills:
                break
            self.kills += 1
            finished, was_killed = now, True
            print(f"kill {self.kills}: {name} after {left:.2f} s, {len(now)} of {CLIPS} clips finished", flush=True)
        equal = status == "success" and folder.content() == self.expected
        self.unequal += not equal
        print(f"{name} ended: {status}, {'equal' if equal else 'NOT equal'} to the uninterrupted run", flush=True)


def main(arguments: list[str]) -> int:
    """Command line; prints the counts as JSON in the last line."""
    parser = argparse.ArgumentParser(prog="python dev.py bench faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        write_tiny_weights(base / "models")
        relay = Relay(make_hosts(Path(os.environ["COMFYUI_PATH"]), base, base / "models"))
        try:
            faults = Faults(relay, base / "output" / "longvie", options.seed)
            number = 0
            while faults.kills < options.kills:
                number += 1
                faults.run(f"run_{number}", options.kills)
        finally:
            relay.close()
    counts = {name: getattr(faults, name) for name in ("kills", "resumed", "lost_clips", "unequal")}
    print(json.dumps(counts))
    return int(faults.resumed < faults.kills or faults.lost_clips > 0 or faults.unequal > 0)
