"""The Clip Loop and ``python -m longvie_core.generate`` render the same runs; runs that version 0.1 wrote go on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from devtools.host import Host
from longvie_core import generate
from longvie_core.run.manifest import Manifest

ROOT = Path(__file__).resolve().parents[2]
RUN_OF_0_1 = ROOT / "tests" / "data" / "run_of_0_1"
"""Two runs of three clips that version 0.1 wrote with LongVie-Tiny, its control clips, and how they were queued."""
TIME = 1_700_000_000
"""When the weights were last changed as version 0.1 saw them; it knew files by size and time."""
CLIPS = 3

LOOP, SHOW = "15", "16"
NETWORKS = {"sampler/model", "sampler/control network", "sampler/vae", "sampler/image encoder", "text encoder"}
"""Parts of a clip's key that name networks: by the graph in ComfyUI, by files elsewhere."""


def lay_out(base: Path) -> Path:
    """LongVie-Tiny's weights and the control clips in a host's folders; returns the folder of the weights."""
    tiny = ROOT / "models" / "longvie-tiny"
    for file in tiny.rglob("*.safetensors"):
        copy = base / "models" / file.relative_to(tiny)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        os.utime(copy, (TIME, TIME))
    shutil.copytree(RUN_OF_0_1 / "clips", base / "input" / "clips", dirs_exist_ok=True)
    return base / "models"


@pytest.fixture(scope="module")
def tiny_files(new_host: Callable[..., Host], tmp_path_factory: pytest.TempPathFactory) -> tuple[Host, Path]:
    base = tmp_path_factory.mktemp("one_renderer")
    models = lay_out(base)
    with new_host(base) as host:
        yield host, models


def prompt_of(run_name: str) -> dict[str, Any]:
    prompt = json.loads((RUN_OF_0_1 / "prompt.json").read_text("utf-8"))
    prompt[LOOP]["inputs"]["run_name"] = run_name
    return prompt


def queue(host: Host, run_name: str, **inputs: dict[str, Any]) -> str:
    """Run the fixture's prompt, inputs changed by node id; returns the loop's report."""
    prompt = prompt_of(run_name)
    for node, values in inputs.items():
        prompt[node.removeprefix("node_")]["inputs"].update(values)
    result = host.run(prompt, timeout=300)
    assert result.status == "success", result.error
    return result.outputs[SHOW]["text"][0]


def generate_again(models: Path, run: Path, *options: str) -> int:
    """The command that made the fixture's run without ComfyUI."""
    networks = {
        "--backbone": models / "diffusion_models" / "longvie_tiny.safetensors",
        "--vae": models / "vae" / "longvie_tiny_vae.safetensors",
        "--control": models / "model_patches" / "longvie_tiny_control.safetensors",
        "--clips": RUN_OF_0_1 / "clips",
        "--prompts": RUN_OF_0_1 / "prompts.json",
    }
    words = [word for name, path in networks.items() for word in (name, str(path))]
    size = ["--width", "48", "--height", "32", "--steps", "2", "--cfg", "1"]
    return generate.main([str(run), *words, *size, *options])


def parts_of(run: Path) -> list[dict[str, str]]:
    return [take.parts for take in Manifest.from_json((run / "run.json").read_text("utf-8")).clips]


def files_of(run: Path) -> dict[str, bytes]:
    """The files of the run's takes, by clip."""
    takes = Manifest.from_json((run / "run.json").read_text("utf-8")).clips
    files = {f"clip_{take.clip + 1:04d}": (take.latents, take.video) for take in takes}
    return {f"{name}{Path(file.name).suffix}": (run / file.name).read_bytes() for name, both in files.items() for file in both}


def test_a_run_of_0_1_is_kept_by_the_loop(tiny_files: tuple[Host, Path]) -> None:
    host, _ = tiny_files
    run = Path(shutil.copytree(RUN_OF_0_1 / "node", host.base / "output" / "longvie" / "old"))
    before = files_of(run)
    report = queue(host, "old")
    assert f"kept {CLIPS} of {CLIPS} clips" in report and "rendered" not in report
    assert files_of(run) == before
    report = queue(host, "old", node_10={"prompts": '["one", "another", "three"]'})
    assert "clips 2 .. 3 are rendered again: " in report and "prompt" in report and "kept 1 of 3 clips" in report
    # What was kept has today's words from now on.
    assert all("sampler/model" in parts for parts in parts_of(run))
    assert f"kept {CLIPS} of {CLIPS} clips" in queue(host, "old", node_10={"prompts": '["one", "another", "three"]'})


def test_a_run_of_0_1_is_kept_without_comfyui(tiny_files: tuple[Host, Path], tmp_path: Path, capsys: Any) -> None:
    _, models = tiny_files
    run = Path(shutil.copytree(RUN_OF_0_1 / "generate", tmp_path / "old"))
    before = files_of(run)
    options = ("--negative", "worst", "--seed", "7", "--dense-strength", "0.9")
    assert generate_again(models, run, *options) == 0
    assert f"kept {CLIPS} of {CLIPS} clips" in capsys.readouterr().out
    assert files_of(run) == before
    assert generate_again(models, run, "--negative", "worst", "--seed", "7", "--dense-strength", "0.8") == 0
    assert "clips 1 .. 3 are rendered again: strengths changed" in capsys.readouterr().out


def test_both_name_the_same_run_in_the_same_words(tiny_files: tuple[Host, Path], tmp_path: Path) -> None:
    host, models = tiny_files
    queue(host, "same")
    assert generate_again(models, tmp_path / "same", "--negative", "", "--first-frame-sigma", "0.925926") == 0
    ours, theirs = parts_of(host.base / "output" / "longvie" / "same"), parts_of(tmp_path / "same")
    assert len(ours) == len(theirs) == CLIPS
    for in_comfyui, without in zip(ours, theirs, strict=True):
        assert in_comfyui.keys() == without.keys() and in_comfyui.keys() >= NETWORKS
        settings = in_comfyui.keys() - NETWORKS
        assert {name: in_comfyui[name] for name in settings} == {name: without[name] for name in settings}
    assert "first frame" in ours[0] and "sampler/history" not in ours[0] and "dense strength" in ours[1]


def test_without_comfyui_control_latents_are_kept_clips_anchored_and_runs_paused(
    tiny_files: tuple[Host, Path], tmp_path: Path, capsys: Any
) -> None:
    _, models = tiny_files
    run = tmp_path / "run"
    assert generate_again(models, run, "--pause-after", "1") == 0
    text = capsys.readouterr().out
    assert "paused after clip 1 of 3" in text and "control latents: 2 encoded, 0 kept" in text
    assert generate_again(models, run, "--pause-after", "2") == 0
    assert "kept 1 of 3 clips" in capsys.readouterr().out and len(parts_of(run)) == CLIPS
    plain = files_of(run)
    assert generate_again(models, run, "--anchor", "latent", "--anchor-strength", "1") == 0
    text = capsys.readouterr().out
    # Anchoring draws later clips to the first one, which stays as it is.
    assert "clips 2 .. 3 are rendered again: sampler changed (anchor)" in text and "control latents: 0 encoded, 4 kept" in text
    anchored = files_of(run)
    assert anchored["clip_0001.safetensors"] == plain["clip_0001.safetensors"]
    assert anchored["clip_0002.safetensors"] != plain["clip_0002.safetensors"]
