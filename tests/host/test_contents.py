"""A model is what its file holds: renamed, copied, touched or moved it is the same one, in the running host."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devtools.host import Host
from devtools.tiny import LOADERS, RANDOM_VAE
from tests.helpers.workflow import CLIPS, Prompt, add, free_memory, rendered_clips, report, run, set_inputs, tiny_workflow

STEPS = {"Sigmas": {"steps": 2}}
KEPT = f"kept {CLIPS} of {CLIPS} clips"


@pytest.fixture(scope="module")
def rendered(tiny_host: Host) -> Host:
    """The host, with the run "models" rendered."""
    run(tiny_host, tiny_workflow("models", **STEPS))
    return tiny_host


@pytest.fixture
def placed(rendered: Host) -> Iterator[dict[str, Path]]:
    """For files that a test puts into the model folders; they go after it."""
    files: dict[str, Path] = {}
    yield files
    for path in files.values():
        path.unlink(missing_ok=True)
    free_memory(rendered)


def queue(host: Host, prompt: Prompt) -> tuple[int, str]:
    """How many clips were rendered, and the report."""
    result = run(host, prompt)
    return rendered_clips(prompt, result), report(result)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_renamed_copy_in_a_sub_folder_is_the_same_model(rendered: Host, placed: dict[str, Path], loader: str) -> None:
    widget, file = LOADERS[loader]
    source = rendered.base / "models" / file
    placed["copy"] = source.with_name("below") / "another name.safetensors"
    placed["copy"].parent.mkdir(exist_ok=True)
    shutil.copyfile(source, placed["copy"])
    prompt = tiny_workflow("models", **STEPS)
    set_inputs(prompt, loader, **{widget: "below/another name.safetensors"})
    count, text = queue(rendered, prompt)
    assert count == 0 and KEPT in text


def test_a_file_of_the_same_name_in_other_folders_is_not_meant(rendered: Host, placed: dict[str, Path]) -> None:
    for kind in ("checkpoints", "diffusion_models", "loras", "text_encoders"):
        placed[kind] = rendered.base / "models" / kind / Path(RANDOM_VAE).name
        placed[kind].parent.mkdir(exist_ok=True)
        placed[kind].write_bytes(kind.encode())
    free_memory(rendered)
    count, text = queue(rendered, tiny_workflow("models", **STEPS))
    assert count == 0 and KEPT in text


def test_texts_that_name_equal_files_are_different_texts(rendered: Host, placed: dict[str, Path]) -> None:
    folder = rendered.base / "models" / "vae"
    for name in ("one", "other"):
        placed[name] = folder / f"{name}.safetensors"
        shutil.copyfile(rendered.base / "models" / RANDOM_VAE, placed[name])

    def worded(text: str) -> Prompt:
        prompt = tiny_workflow("texts", **STEPS, ClipLoop={"clips": "1"})
        clip = add(prompt, "encoder", "TestTextEncoder", log=text)
        set_inputs(prompt, "LongViePromptSchedule", clip=clip)
        return prompt

    assert queue(rendered, worded("one.safetensors"))[0] == 1
    count, text = queue(rendered, worded("other.safetensors"))
    assert count == 1 and "text encoder changed" in text
    # A node may load what is typed in: its bytes count beside its name.
    placed["other"].write_bytes(b"other weights")
    free_memory(rendered)
    count, text = queue(rendered, worded("other.safetensors"))
    assert count == 1 and "text encoder changed" in text


def test_what_was_read_is_remembered_where_the_user_keeps_his_things(rendered: Host) -> None:
    time.sleep(2.1)  # younger files are not remembered
    free_memory(rendered)
    run(rendered, tiny_workflow("models", **STEPS))
    text = (rendered.base / "user" / "longvie" / "contents.json").read_text(encoding="utf-8")
    assert all(Path(file).name in text for _, file in LOADERS.values())
