"""The shipped workflows against the node descriptions of the real host: nothing dangles, everything fits, both forms agree."""

import copy
import json
import re
import urllib.request
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from devtools.host import Host, PromptRejected
from devtools.workflows.page import completed, page_workflow
from tests.helpers.places import ROOT

WORKFLOWS = ROOT / "workflows"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
OFFICIAL = "longvie_from_control_clips"
FROM_VIDEO = "longvie_from_video"

# Inputs that name a file or folder of the user, which a host without weights and clips cannot list.
FILES = {
    ("LongVieLoadClips", "folder"),
    ("LoadVideo", "file"),
    ("LoadImage", "image"),
    ("LongVieDepthControl", "engine.model"),
    ("UNETLoader", "unet_name"),
    ("LongVieAttentionOverlay", "file"),
    ("LongVieLoadControl", "file"),
    ("VAELoader", "vae_name"),
    ("CLIPLoader", "clip_name"),
    ("CLIPVisionLoader", "clip_name"),
}
NOTES = {"MarkdownNote", "Note"}
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
# Inputs beside which the page puts an upload button, the last of the node's widgets.
UPLOADS = {("LoadVideo", "file"), ("LoadImage", "image")}
WIDGETS = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}
TITLE_BAR = 30

Graph = dict[str, Any]


@pytest.fixture(scope="module")
def info(host: Host) -> Graph:
    """The host's node descriptions."""
    return host.object_info()


def read(folder: Path, name: str) -> Graph:
    """A workflow file."""
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(description: Graph, given: Graph) -> dict[str, tuple[Any, Graph]]:
    """A node's inputs in the order of its widgets: name -> (type or list of choices, options).

    What the choice of a dynamic combo brings follows the combo; none of the pack's has further ones inside.
    """
    order = [(kind, name) for kind in ("required", "optional") for name in description["input_order"].get(kind, [])]
    specs = {}
    for kind, name in order:
        specs[name] = spec = description["input"][kind][name]
        if spec[0] == DYNAMIC:
            chosen = [option["inputs"] for option in spec[1]["options"] if option["key"] == given.get(name)]
            specs |= {f"{name}.{key}": inner for inputs in chosen for part in inputs.values() for key, inner in part.items()}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in specs.items()}


def choices(kind: Any, options: Graph) -> list[Any] | None:
    """What a combo offers, in any of the host's notations; None for every other input."""
    if isinstance(kind, list):
        return kind
    if kind == DYNAMIC:
        return [option["key"] for option in options["options"]]
    return options["options"] if kind == "COMBO" else None


# ---- the checkers


def prompt_problems(prompt: Graph, info: Graph) -> list[str]:
    """What keeps a prompt in API form from running on a host with these nodes, weights and clips aside."""
    return [problem for key, node in prompt.items() for problem in node_problems(key, node, prompt, info)]


def node_problems(key: str, node: Graph, prompt: Graph, info: Graph) -> Iterator[str]:
    """Problems of one node."""
    name = f"{key} ({node['class_type']})"
    if node["class_type"] not in info:
        yield f"{name}: no such node"
        return
    description = info[node["class_type"]]
    known = inputs_of(description, node["inputs"])
    brought = {name for name in known if name.partition(".")[0] != name}
    for missing in (description["input"].get("required", {}).keys() | brought) - node["inputs"].keys():
        yield f"{name}: required input {missing} is missing"
    for unknown in node["inputs"].keys() - known.keys():
        yield f"{name}: no input {unknown}"
    for given in node["inputs"].keys() & known.keys():
        value, (kind, options) = node["inputs"][given], known[given]
        if isinstance(value, list):
            problem = link_problem(value, "COMBO" if isinstance(kind, list) else kind, prompt, info)
        elif (node["class_type"], given) in FILES:
            problem = "" if isinstance(value, str) and value else "names no file"
        else:
            problem = value_problem(value, kind, options)
        if problem:
            yield f"{name}: input {given} {problem}"


def link_problem(link: list[Any], wanted: str, prompt: Graph, info: Graph) -> str:
    """What is wrong with a link [node, output] into an input of a type; empty = nothing."""
    source, slot = link
    if source not in prompt:
        return f"comes from node {source}, which is not there"
    outputs = info.get(prompt[source]["class_type"], {"output": []})["output"]
    if not 0 <= slot < len(outputs):
        return f"comes from output {slot} of node {source}, which has {len(outputs)}"
    if wanted != "*" and outputs[slot] != "*" and not set(outputs[slot].split(",")) & set(wanted.split(",")):
        return f"takes {wanted}, but gets {outputs[slot]}"
    return ""


def value_problem(value: Any, kind: Any, options: Graph) -> str:
    """What is wrong with a widget's value; empty = nothing."""
    offered = choices(kind, options)
    if offered is not None:
        return "" if value in offered else f"does not offer {value!r}"
    if kind not in WIDGETS:
        return f"takes a link ({kind}), not a value"
    if not isinstance(value, WIDGETS[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
        return f"takes {kind}, not {value!r}"
    if not options.get("min", value) <= value <= options.get("max", value):
        return f"is outside {options['min']} .. {options['max']}: {value}"
    return ""


def page_problems(page: Graph) -> list[str]:
    """What is inconsistent within a workflow in the page's form: its links are written down three times."""
    nodes = {node["id"]: node for node in page["nodes"]}
    links = {link[0]: link for link in page["links"]}
    problems = [] if len(nodes) == len(page["nodes"]) and len(links) == len(page["links"]) else ["an id is used twice"]
    if page["last_node_id"] < max(nodes) or page["last_link_id"] < max(links, default=0):
        problems.append("last_node_id or last_link_id is too small: new ids would collide")
    entered = [
        (slot["link"], "target", node["id"], place, slot["type"])
        for node in page["nodes"]
        for place, slot in enumerate(node["inputs"])
        if slot["link"] is not None
    ] + [
        (link, "origin", node["id"], place, slot["type"])
        for node in page["nodes"]
        for place, slot in enumerate(node["outputs"])
        for link in slot["links"]
    ]
    tabled = [(link, "origin", origin, slot, kind) for link, origin, slot, _, _, kind in page["links"]]
    tabled += [(link, "target", target, slot, kind) for link, _, _, target, slot, kind in page["links"]]
    problems += [f"link {end[0]} is not in the table: {end}" for end in entered if end not in tabled]
    problems += [f"link {end[0]} dangles: no node has {end}" for end in tabled if end not in entered]
    return problems


def to_prompt(page: Graph, info: Graph) -> Graph:
    """The API form of a workflow in the page's form: what the page would queue."""
    links = {link[0]: [str(link[1]), link[2]] for link in page["links"]}
    prompt = {}
    for node in page["nodes"]:
        if node["type"] in NOTES:
            continue
        values = iter(node["widgets_values"])
        inputs: Graph = {}
        # A choice that was just read decides which widgets come next.
        while (unread := next(unread_widgets(info[node["type"]], inputs), None)) is not None:
            name, options = unread
            inputs[name] = next(values)
            if options.get("control_after_generate"):
                next(values)
        if any(node["type"] == kind for kind, _ in UPLOADS):
            assert next(values) == "image"
        assert not list(values), f"node {node['id']} has more widget values than widgets"
        inputs |= {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": node["title"]}}
    return prompt


def unread_widgets(description: Graph, inputs: Graph) -> Iterator[tuple[str, Graph]]:
    """Name and options of the widgets whose values are not among the inputs yet, in the page's order."""
    for name, (kind, options) in inputs_of(description, inputs).items():
        is_widget = choices(kind, options) is not None or (kind in WIDGETS and not options.get("forceInput"))
        if is_widget and name not in inputs:
            yield name, options


# ---- the shipped files


def test_every_workflow_is_there_in_both_forms() -> None:
    assert {OFFICIAL, FROM_VIDEO, "longvie_tiny_from_control_clips", "longvie_tiny_from_video"} <= set(NAMES)
    assert sorted(path.stem for path in WORKFLOWS.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_api_workflow_fits_the_host(name: str, info: Graph) -> None:
    assert prompt_problems(read(WORKFLOWS / "api", name), info) == []


@pytest.mark.parametrize("name", NAMES)
def test_page_workflow_is_consistent_and_queues_the_api_workflow(name: str, info: Graph) -> None:
    page = read(WORKFLOWS, name)
    assert page["version"] == 0.4
    assert page_problems(page) == []
    assert to_prompt(page, info) == read(WORKFLOWS / "api", name)


@pytest.mark.parametrize("name", NAMES)
def test_page_workflow_is_what_the_tool_writes(name: str, info: Graph) -> None:
    assert read(WORKFLOWS, name) == page_workflow(name, read(WORKFLOWS / "api", name), info)


@pytest.mark.parametrize("name", NAMES)
def test_slots_are_those_of_the_node(name: str, info: Graph) -> None:
    prompt = read(WORKFLOWS / "api", name)
    for node in read(WORKFLOWS, name)["nodes"]:
        if node["type"] in NOTES:
            continue
        kinds = {
            key: "COMBO" if isinstance(kind, list) else kind
            for key, (kind, _) in inputs_of(info[node["type"]], prompt[str(node["id"])]["inputs"]).items()
        }
        if any(node["type"] == kind for kind, _ in UPLOADS):
            kinds["upload"] = "IMAGEUPLOAD"
        assert {slot["name"]: slot["type"] for slot in node["inputs"]} == kinds
        described = info[node["type"]]
        outputs = list(zip(described["output_name"], described["output"], strict=True))
        assert [(slot["name"], slot["type"]) for slot in node["outputs"]] == outputs
        assert node["properties"]["Node name for S&R"] == node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_stays_as_it_is_after_a_run(name: str) -> None:
    (noise,) = [node for node in read(WORKFLOWS, name)["nodes"] if node["type"] == "LongVieUnifiedNoise"]
    assert noise["widgets_values"][1] == "fixed"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_on_the_page(name: str) -> None:
    page = read(WORKFLOWS, name)
    boxes = {}
    for node in page["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["title"]] = (x, y - TITLE_BAR, x + width, y + height)
    frames = {}
    for group in page["groups"]:
        x, y, width, height = group["bounding"]
        frames[group["title"]] = (x, y, x + width, y + height)
    assert len(boxes) == len(page["nodes"]), "two nodes have the same title"
    for kind in (boxes, frames):
        overlapping = [(a, b) for a, b in combinations(kind, 2) if overlap(kind[a], kind[b])]
        assert overlapping == []
    for title, box in boxes.items():
        around = [frame for frame in frames.values() if overlap(box, frame)]
        assert len(around) == (title != "What goes where"), title
        assert all(frame[0] <= box[0] and frame[1] <= box[1] for frame in around)
        assert all(box[2] <= frame[2] and box[3] <= frame[3] for frame in around)


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two boxes (left, top, right, bottom) have a point in common."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("name", NAMES)
def test_the_template_browser_shows_the_workflow_with_a_picture(name: str, host: Host) -> None:
    assert name in host.get("/workflow_templates")["longvie"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{host.url}/api/workflow_templates/longvie/{name}.jpg", timeout=60) as answer:
        assert answer.headers["Content-Type"] == "image/jpeg"
    with Image.open(WORKFLOWS / f"{name}.jpg") as picture:
        picture.load()
        assert picture.format == "JPEG"
        assert max(picture.size) == 480
        assert len(np.unique(picture)) > 50  # not a blank one
    assert (WORKFLOWS / f"{name}.jpg").stat().st_size < 60_000


@pytest.mark.parametrize(("name", "count"), [(OFFICIAL, 6), (FROM_VIDEO, 7)])
def test_the_page_knows_where_the_official_weights_come_from(name: str, count: int) -> None:
    page = read(WORKFLOWS, name)
    (note,) = [node["widgets_values"][0] for node in page["nodes"] if node["type"] in NOTES]
    loaded = {value for node in page["nodes"] for value in node["widgets_values"] if str(value).endswith(".safetensors")}
    models = [model for node in page["nodes"] for model in node["properties"].get("models", [])]
    assert {model["name"] for model in models} == loaded
    assert len(loaded) == count
    for model in models:
        assert model["url"].startswith("https://huggingface.co/") and model["url"].endswith(f"/{model['name']}")
        assert f"{model['directory']}/**{model['name']}**" in note


@pytest.mark.parametrize("name", [OFFICIAL, FROM_VIDEO])
def test_without_its_files_nothing_else_keeps_the_official_workflow_from_running(name: str, host: Host) -> None:
    prompt = read(WORKFLOWS / "api", name)
    named = {(node["class_type"], key): node["inputs"] for node in prompt.values() for key in node["inputs"]}
    asked = FILES & named.keys()
    for key in asked:
        # Other tests may have put files of the official names into the shared host.
        named[key][key[1]] = f"absent_{named[key][key[1]]}"
    with pytest.raises(PromptRejected) as rejection:
        host.submit(prompt)
    refused = set()
    for node in rejection.value.node_errors.values():
        for error in node["errors"]:
            field = error["extra_info"]["input_name"]
            if error["type"] == "custom_validation_failed" and node["class_type"] == "LongVieLoadClips":
                # The host repeats a node's own complaint for each input that the node has looked at.
                assert "folder 'absent_ride_horse' does not exist" in error["details"]
                field = "folder"
            elif error["type"] == "custom_validation_failed":
                assert re.search(r"Invalid (image|video) file: absent_", error["details"])
            else:
                assert error["type"] == "value_not_in_list", error
            refused.add((node["class_type"], field))
    assert refused == asked


def test_every_file_is_asked_for_by_an_official_workflow() -> None:
    prompts = [read(WORKFLOWS / "api", name) for name in (OFFICIAL, FROM_VIDEO)]
    assert {(node["class_type"], key) for prompt in prompts for node in prompt.values() for key in node["inputs"]} >= FILES


def test_widgets_that_the_api_form_leaves_out_get_their_defaults(info: Graph) -> None:
    """So a node may gain an input with a default, and the tool writes both forms anew."""
    whole = read(WORKFLOWS / "api", FROM_VIDEO)
    assert completed(whole, info) == whole
    (depth,) = [node for node in whole.values() if node["class_type"] == "LongVieDepthControl"]
    (normalize,) = [node for node in whole.values() if node["class_type"] == "LongVieGlobalNormalize"]
    depth["inputs"].pop("engine.resolution")
    normalize["inputs"].pop("scope")
    filled = completed(whole, info)
    assert filled == read(WORKFLOWS / "api", FROM_VIDEO)
    depth["inputs"].pop("engine.model")
    depth["inputs"].pop("engine")
    (depth,) = [node for node in completed(whole, info).values() if node["class_type"] == "LongVieDepthControl"]
    assert {key: value for key, value in depth["inputs"].items() if key.startswith("engine")} == {
        "engine": "parallax (no weights)"
    }


# ---- the checkers notice


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p["18"].update(class_type="LongVieNoSuchNode"), r"18 \(LongVieNoSuchNode\): no such node"),
        (lambda p: p.pop("16"), "input sampler comes from node 16, which is not there"),
        (lambda p: p["18"]["inputs"].update(dense=["1", 4]), "input dense takes LONGVIE_CONTROL, but gets IMAGE"),
        (lambda p: p["18"]["inputs"].update(dense=["1", 5]), "input dense comes from output 5 of node 1, which has 5"),
        (lambda p: p["18"]["inputs"].update(depth=["1", 1]), "no input depth"),
        (lambda p: p["18"]["inputs"].pop("plan"), "required input plan is missing"),
        (lambda p: p["18"]["inputs"].update(plan=81), r"input plan takes a link \(LONGVIE_PLAN\), not a value"),
        (lambda p: p["17"]["inputs"].update(mode="united"), "input mode does not offer 'united'"),
        (lambda p: p["11"]["inputs"].update(type="wan3"), "input type does not offer 'wan3'"),
        (lambda p: p["14"]["inputs"].update(steps=0), r"input steps is outside 1 \.\. 1000: 0"),
        (lambda p: p["14"]["inputs"].update(steps="50"), "input steps takes INT, not '50'"),
        (lambda p: p["9"]["inputs"].update(file=""), "input file names no file"),
    ],
)
def test_a_spoiled_api_workflow_is_noticed(spoil: Callable[[Graph], object], message: str, info: Graph) -> None:
    prompt = copy.deepcopy(read(WORKFLOWS / "api", OFFICIAL))
    spoil(prompt)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(prompt_problems(prompt, info)))


def of_class(prompt: Graph, kind: str) -> Graph:
    """Inputs of the only node of a class."""
    (found,) = [node["inputs"] for node in prompt.values() if node["class_type"] == kind]
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "Depth Anything 4"}, "input engine does not offer 'Depth Anything 4'"),
        ({"engine": "parallax (no weights)"}, "no input engine.model"),
        ({"engine": "controlnet-aux"}, "required input engine.network is missing"),
        ({"engine.resolution": 13}, r"input engine.resolution is outside 140 \.\. 2520: 13"),
        ({"engine.model": ""}, "input engine.model names no file"),
    ],
)
def test_a_spoiled_choice_is_noticed(changes: Graph, message: str, info: Graph) -> None:
    prompt = read(WORKFLOWS / "api", FROM_VIDEO)
    of_class(prompt, "LongVieDepthControl").update(changes)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(prompt_problems(prompt, info)))


def node_of(page: Graph, kind: str) -> Graph:
    """The first node of a class."""
    return next(node for node in page["nodes"] if node["type"] == kind)


def unlink(page: Graph) -> None:
    """Take a link off its input, but leave it in the table."""
    node_of(page, "LongVieClipLoop")["inputs"][0]["link"] = None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p["links"].pop(), "is not in the table"),
        (lambda p: p["nodes"].remove(node_of(p, "LongVieMultimodalSampler")), "dangles"),
        (unlink, "dangles"),
        (lambda p: p["links"][0].__setitem__(5, "IMAGE"), "dangles"),
        (lambda p: p["links"][0].__setitem__(4, 9), "dangles"),
        (lambda p: p["nodes"].append(p["nodes"][0]), "an id is used twice"),
        (lambda p: p.update(last_node_id=3), "new ids would collide"),
    ],
)
def test_a_spoiled_page_workflow_is_noticed(spoil: Callable[[Graph], object], message: str) -> None:
    page = copy.deepcopy(read(WORKFLOWS, OFFICIAL))
    spoil(page)
    assert message in "\n".join(page_problems(page))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: node_of(p, "LongVieMultimodalSampler")["widgets_values"].reverse(),
        lambda p: node_of(p, "LongVieUnifiedNoise")["widgets_values"].__setitem__(0, 1),
        lambda p: node_of(p, "LongVieSigmas").update(title="Steps"),
        lambda p: p["nodes"].remove(node_of(p, "PreviewImage")),
        lambda p: node_of(p, "LongVieClipLoop")["inputs"][5].update(link=node_of(p, "LongVieClipLoop")["inputs"][6]["link"]),
    ],
)
def test_the_comparison_of_both_forms_notices(spoil: Callable[[Graph], object], info: Graph) -> None:
    page = copy.deepcopy(read(WORKFLOWS, OFFICIAL))
    spoil(page)
    assert to_prompt(page, info) != read(WORKFLOWS / "api", OFFICIAL)


@pytest.mark.parametrize("values", [["Depth Anything 3", 504, "m", "stretch"], ["DA3 geometry", "stretch"]])
def test_the_comparison_of_both_forms_notices_another_choice(values: list[Any], info: Graph) -> None:
    page = read(WORKFLOWS, FROM_VIDEO)
    node_of(page, "LongVieDepthControl")["widgets_values"] = values
    assert to_prompt(page, info) != read(WORKFLOWS / "api", FROM_VIDEO)
