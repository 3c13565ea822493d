"""Smoke tests of the real host and of the client that the other tests and the demo use."""

from pathlib import Path

import psutil
import pytest
from PIL import Image

from devtools.host import Host, HostError, PromptRejected

WIDTH, HEIGHT = 48, 32


def save_image_prompt(color: int, prefix: str = "smoke") -> dict:
    """An API-format prompt of core nodes only: a plain picture of one 0xRRGGBB colour, saved."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": WIDTH, "height": HEIGHT, "batch_size": 1, "color": color},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def test_the_host_is_new_enough_and_on_cpu(host: Host) -> None:
    stats = host.get("/system_stats")
    assert tuple(int(part) for part in stats["system"]["comfyui_version"].split(".")[:3]) >= (0, 30, 0)
    assert [device["type"] for device in stats["devices"]] == ["cpu"]
    assert 100 < host.rss_mib() < 4000


def test_object_info_describes_a_core_node(host: Host) -> None:
    info = host.object_info("KSampler")
    assert info["output"] == ["LATENT"]
    assert "denoise" in info["input"]["required"]
    assert "SaveVideo" in host.object_info()


def test_a_prompt_of_core_nodes_runs_and_reports_its_events(host: Host) -> None:
    seen: list[str] = []
    result = host.run(save_image_prompt(0x3366CC), lambda kind, data: seen.append(kind), timeout=60)
    assert (result.status, result.error) == ("success", None)
    assert seen == [kind for kind, _ in result.events]
    assert [data["node"] for data in result.messages("executing")] == ["1", "2", None]
    assert seen.index("execution_start") < seen.index("executed") < seen.index("execution_success")
    (image,) = result.outputs["2"]["images"]
    with Image.open(host.base / "output" / image["subfolder"] / image["filename"]) as saved:
        assert (saved.size, saved.getpixel((5, 5))) == ((WIDTH, HEIGHT), (0x33, 0x66, 0xCC))


def test_a_submitted_prompt_can_be_waited_for(host: Host) -> None:
    prompt_id = host.submit(save_image_prompt(0x112233, "submitted"))
    result = host.wait(prompt_id, timeout=60)
    assert (result.prompt_id, result.status) == (prompt_id, "success")
    assert [kind for kind, _ in result.events][-1] == "execution_success"
    assert result.outputs["2"]["images"][0]["filename"].startswith("submitted")


def test_a_repeated_prompt_is_cached(host: Host) -> None:
    host.run(save_image_prompt(0x445566), timeout=60)
    again = host.run(save_image_prompt(0x445566), timeout=60)
    assert set(again.messages("execution_cached")[0]["nodes"]) == {"1", "2"}
    assert again.outputs["2"]["images"]


def test_an_unknown_node_is_rejected(host: Host) -> None:
    with pytest.raises(PromptRejected, match="NoSuchNode") as rejection:
        host.run({"1": {"class_type": "NoSuchNode", "inputs": {}}}, timeout=60)
    assert rejection.value.error["type"] == "missing_node_type"


def test_a_wrong_input_is_rejected_with_the_node_and_the_reason(host: Host) -> None:
    prompt = save_image_prompt(0)
    prompt["1"]["inputs"]["width"] = -1
    with pytest.raises(PromptRejected, match=r"node 1 \(EmptyImage\): .*width") as rejection:
        host.run(prompt, timeout=60)
    assert list(rejection.value.node_errors) == ["1"]


def test_a_failing_node_is_named(host: Host) -> None:
    (host.base / "input" / "broken.png").write_bytes(b"no picture")
    prompt = save_image_prompt(0)
    prompt["1"] = {"class_type": "LoadImage", "inputs": {"image": "broken.png"}}
    result = host.run(prompt, timeout=60)
    assert result.status == "error"
    assert (result.error.node_id, result.error.node_type) == ("1", "LoadImage")
    assert result.error.exception_message
    assert "2" not in result.messages("executing")


def test_a_running_prompt_can_be_interrupted(host: Host) -> None:
    prompt = save_image_prompt(0x010203)
    scale = {"upscale_method": "lanczos", "width": 4096, "height": 4096, "crop": "disabled", "image": ["1", 0]}
    prompt["3"] = {"class_type": "ImageScale", "inputs": scale}
    prompt["2"]["inputs"]["images"] = ["3", 0]

    def interrupt_while_scaling(kind: str, data: dict) -> None:
        if kind == "executing" and data["node"] == "3":
            host.interrupt(data["prompt_id"])

    result = host.run(prompt, interrupt_while_scaling, timeout=60)
    assert (result.status, result.error, result.outputs) == ("interrupted", None, {})
    assert host.run(save_image_prompt(0x040506), timeout=60).status == "success"


@pytest.mark.slow
def test_a_pack_that_does_not_import_is_an_error(make_host, tmp_path: Path) -> None:
    broken = tmp_path / "broken_pack"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise RuntimeError('broken on purpose')", encoding="utf-8")
    with pytest.raises(HostError, match="broken on purpose"):
        make_host(extra_packs=[broken])


@pytest.mark.slow
def test_a_host_killed_while_it_runs_is_an_error_and_leaves_no_process(make_host) -> None:
    before = set(psutil.Process().children(recursive=True))
    host = make_host()
    assert len(set(psutil.Process().children(recursive=True)) - before) == 2  # the host and its watchdog
    with pytest.raises(HostError, match="end of .*host.log"):
        host.run(save_image_prompt(1), lambda kind, data: host.kill(), timeout=60)
    assert set(psutil.Process().children(recursive=True)) <= before
    host.stop()  # a second end is harmless
