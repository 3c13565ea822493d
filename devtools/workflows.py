"""The workflows as ComfyUI's page loads them: each graph of ``workflows/api``, laid out, in ``workflows``.

``python -m devtools.workflows`` asks a real host for its node descriptions, gives the widgets that ``api/NAME.json`` does not
name their defaults (the page queues every widget) and writes ``NAME.json`` for each; ``--pictures`` writes the ``NAME.jpg``
that the host's template browser shows, too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from graphlib import TopologicalSorter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import dev
from devtools.host import Host
from longvie_core.plan import ClipPlan
from longvie_core.world.clips import TrackGrid, write_scene_clips
from longvie_core.world.render import render
from longvie_core.world.scene import make_scene

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
"""A choice that brings inputs of its own: on the page they follow it, named ``choice.input``."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO}
UPLOADS = ("image_upload", "video_upload")
"""Options of a combo beside which the page puts an upload button, which takes a place among the widgets."""
OPTIONAL_SHAPE = 7
"""LiteGraph's shape of an input that may stay open."""


@dataclass(frozen=True)
class Group:
    """A titled frame around the nodes of these classes, in a column of the page; groups of a column lie below each other."""

    title: str
    column: int
    classes: frozenset[str]


GROUPS = (
    Group("Driving video", 0, frozenset({"LoadVideo", "LoadImage", "Video Slice", "GetVideoComponents", "LongVieClipPlan"})),
    Group(
        "Controls",
        1,
        frozenset(
            {
                "LongVieLoadClips",
                "LongVieDepthControl",
                "LongVieGlobalNormalize",
                "LongVieTrackControl",
                "LongVieControlPreview",
                "PreviewImage",
            }
        ),
    ),
    Group(
        "Model",
        1,
        frozenset(
            {
                "UNETLoader",
                "LongVieAttentionOverlay",
                "ModelSamplingSD3",
                "LongVieLoadControl",
                "VAELoader",
                "CLIPVisionLoader",
            }
        ),
    ),
    Group("Prompts", 2, frozenset({"CLIPLoader", "LongViePromptSchedule"})),
    Group("Sampling", 2, frozenset({"KSamplerSelect", "LongVieSigmas", "LongVieUnifiedNoise", "LongVieMultimodalSampler"})),
    Group("Video", 3, frozenset({"LongVieClipLoop"})),
)

# Room for what the page shows inside: text boxes, pictures, the video.
SIZES = {
    "LongViePromptSchedule": (420, 330),
    "PreviewImage": (320, 260),
    "LoadVideo": (320, 340),
    "LoadImage": (320, 340),
    "LongVieMultimodalSampler": (360, 540),
    "LongVieClipLoop": (480, 620),
}
NODE_WIDTH, SLOT_HEIGHT, WIDGET_HEIGHT, NODE_PADDING = 300, 20, 28, 40
NODE_TITLE = 30
GAP_X, GAP_Y = 60, 80
GROUP_PADDING, GROUP_TITLE, GROUP_GAP = 30, 50, 50
NOTE_WIDTH, NOTE_HEIGHT = 520, 720

HUGGING_FACE = "https://huggingface.co"
WAN = f"{HUGGING_FACE}/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
LONGVIE = f"{HUGGING_FACE}/Vchitect/LongVie2/resolve/main"
DEPTH_ANYTHING = f"{HUGGING_FACE}/Comfy-Org/Depth-Anything-3/resolve/main"
MODEL_FILES = {
    "wan2.1_i2v_480p_14B_bf16.safetensors": ("diffusion_models", f"{WAN}/diffusion_models"),
    "dit.safetensors": ("diffusion_models", LONGVIE),
    "control.safetensors": ("model_patches", LONGVIE),
    "wan_2.1_vae.safetensors": ("vae", f"{WAN}/vae"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("text_encoders", f"{WAN}/text_encoders"),
    "clip_vision_h.safetensors": ("clip_vision", f"{WAN}/clip_vision"),
    "depth_anything_3_mono_large.safetensors": ("geometry_estimation", f"{DEPTH_ANYTHING}/geometry_estimation"),
}
"""Published weights: folder below ComfyUI's ``models``, and the address of the folder that they are published in."""

NOTES = {
    "longvie_from_control_clips": """# LongVie 2 from control clips
Depth and point tracks of a driving video, one prompt a clip and one first frame become one long video: 81 frames a clip,
640x352, 16 fps.

## 1. Weights, below ComfyUI/models
{files}

## 2. Control clips, below ComfyUI/input
A folder such as `ride_horse`: `cond.json`, `depth_00.mp4`, `track_00.mp4`, `depth_01.mp4`, ..., `first.png`. Press **R** on the
page after copying, choose it in *Control clips*, and look at the two previews: **near must be black**.

## 3. Queue
Every clip is on disk as soon as it is done: `output/longvie/<run_name>/clip_0001.mp4`, ... Queueing again goes on after the
last finished clip. Try one clip first: set *clips* to `1`, then clear it.
""",
    "longvie_from_video": """# LongVie 2 from a video
Depth and point tracks of any driving video, one prompt a clip and one first frame become one long video that moves as the
driving video does: 81 frames a clip, 640x352, 16 fps.

## 1. Weights, below ComfyUI/models
{files}

## 2. Your video and your picture
Choose both in **Driving video** and **First frame** (or upload them there). The picture sets the look; it should show what
the video's first frame shows, in its place: for example that frame in another style. To start from that frame itself,
remove *First frame* and wire *Driving video* → *Trim Video* (duration 0.1) → *Get Video Components* → `first_frame` of the
loop.

## 3. Prompts
Replace the example: one line a clip of 5 seconds; the last line goes on to the end.

## 4. Queue
Look at the two previews first: in the depth, **near must be black**. Every clip is on disk as soon as it is done:
`output/longvie/<run_name>/clip_0001.mp4`, ... Queueing again goes on after the last finished clip; depth and tracks are kept,
too. Try one clip first: set *clips* to `1`, then clear it.

The last clip is filled up and cut again, so that nothing of the video is lost; *tail* = `drop` leaves it out.
""",
    "longvie_tiny_from_control_clips": """# LongVie-Tiny from control clips
The whole graph on any CPU, with nothing to download. **LongVie-Tiny** comes with this pack, and the three loaders find it: the
architecture of LongVie with 8 million weights (16 MB), trained by this pack's own trainer.

## What to expect
It has seen rendered scenes alone: balls and boxes on a patterned ground, filmed by a moving camera, **96x64** and **17 frames**
a clip. On such controls the video moves as they do, small and soft; real footage and other sizes are beyond it. It was
trained without text, so there is no text encoder, and prompts are not read. 8 steps, shift 5, CFG 1 and 8 frames of history
are the settings that it was measured with.

## 1. Control clips
In the folder of this pack, with ComfyUI's Python:
`python -m devtools.demo --film ../../input/longvie_demo`
films a scene that is not among those of the training. Press **R** on the page, choose the folder in *Control clips*.

## 2. Queue
A clip takes a few seconds and is on disk as soon as it is done, below `output/longvie/longvie_demo`; queueing again goes on
after the last finished one.
""",
    "longvie_tiny_from_video": """# LongVie-Tiny from a video
The whole way from a driving video on any CPU, with nothing to download: depth by *parallax* (from the camera's motion alone,
rough), tracks by *Lucas-Kanade*, and **LongVie-Tiny**, which comes with this pack: the architecture of LongVie with 8 million
weights (16 MB), trained by this pack's own trainer.

## What to expect
LongVie-Tiny has seen rendered scenes alone: balls and boxes on a patterned ground, filmed by a moving camera, **96x64** and
**17 frames** a clip, with exact depth and exact tracks. Of your own video it makes something soft that moves with it, no
likeness; the two previews show the controls as they are. It was trained without text, so there is no text encoder, and
prompts are not read. 8 steps, shift 5, CFG 1, 8 frames of history and a grid of 8 are the settings that it was measured with.

## 1. Your video
Choose it in *Driving video* (or upload it there). It also gives the first frame: *Trim Video* keeps a tenth of a second, so
that no long video is loaded whole.

## 2. Queue
A clip takes a few seconds and is on disk as soon as it is done, below `output/longvie/longvie_tiny_from_video`; queueing again
goes on after the last finished one, and neither depth nor tracks are made again.
""",
}
"""Text of the note in each workflow; ``{files}`` lists its published weights."""


@dataclass(frozen=True)
class Thumbnail:
    """What a workflow's picture shows: controls of a procedural scene, at the size that the workflow works at.

    ``video``: the scene itself above its controls.
    """

    width: int
    height: int
    grid: TrackGrid
    picture: tuple[int, int]
    video: bool = False


THUMBNAILS = {
    "longvie_from_control_clips": Thumbnail(640, 352, TrackGrid(), (480, 264)),
    "longvie_from_video": Thumbnail(640, 352, TrackGrid(), (480, 396), video=True),
    "longvie_tiny_from_control_clips": Thumbnail(96, 64, TrackGrid(8, 8), (480, 320)),
    "longvie_tiny_from_video": Thumbnail(96, 64, TrackGrid(8, 8), (480, 480), video=True),
}
THUMBNAIL_SCENE = 10
THUMBNAIL_SPEED = 5.0
THUMBNAIL_CLIPS = (0, 3)


# ---- from API form to the page's


def is_widget(spec: Sequence[Any]) -> bool:
    """Whether an input of object_info has a widget on the page."""
    options = spec[1] if len(spec) > 1 else {}
    return (isinstance(spec[0], list) or spec[0] in WIDGET_TYPES) and not options.get("forceInput", False)


def input_specs(info: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """A node's inputs in the order of its widgets: required, then optional ones; after a dynamic combo those of its choice.

    Args:
        info: the host's description of the node.
        inputs: the node's inputs in API form, which say what is chosen; a dynamic combo without a value takes its first option.

    Raises:
        ValueError: a dynamic combo does not offer what is chosen.
    """
    kinds = ((kind, info["input_order"].get(kind, [])) for kind in ("required", "optional"))
    return expanded({name: info["input"][kind][name] for kind, names in kinds for name in names}, inputs)


def expanded(specs: Mapping[str, Sequence[Any]], inputs: Mapping[str, Any], prefix: str = "") -> dict[str, Sequence[Any]]:
    """Inputs with those that the choices of dynamic combos bring, under the names that the page gives them."""
    found: dict[str, Sequence[Any]] = {}
    for name, spec in specs.items():
        name = prefix + name
        found[name] = spec
        if spec[0] == DYNAMIC_COMBO:
            chosen = inputs.get(name, default_value(spec))
            options = {option["key"]: option["inputs"] for option in spec[1]["options"]}
            if chosen not in options:
                raise ValueError(f"{name!r} does not offer {chosen!r}: choose one of {', '.join(options)}")
            brought = {**options[chosen].get("required", {}), **options[chosen].get("optional", {})}
            found |= expanded(brought, inputs, f"{name}.")
    return found


def default_value(spec: Sequence[Any]) -> Any:
    """What the page puts into a new widget.

    Raises:
        ValueError: a widget that has no default and nothing to choose from.
    """
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    offered = spec[0] if isinstance(spec[0], list) else options.get("options")
    if not offered:
        raise ValueError(f"a widget of type {slot_type(spec)} has no default: give it a value in the API form")
    return offered[0]["key"] if spec[0] == DYNAMIC_COMBO else offered[0]


def completed(api: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The graph in API form with every widget named, as the page queues it: those left out have their defaults."""
    graph = {}
    for identifier, node in api.items():
        inputs = dict(node["inputs"])
        for name, spec in input_specs(object_info[node["class_type"]], inputs).items():
            if is_widget(spec) and name not in inputs:
                inputs[name] = default_value(spec)
        graph[identifier] = {**node, "inputs": inputs}
    return graph


def widget_values(specs: Mapping[str, Sequence[Any]], inputs: Mapping[str, Any]) -> list[Any]:
    """A node's ``widgets_values``; a linked widget keeps its place with its default.

    Raises:
        ValueError: a widget without a value.
    """
    values: list[Any] = []
    for name, spec in specs.items():
        if not is_widget(spec):
            continue
        if name not in inputs:
            raise ValueError(f"the API form gives no value for {name!r}: name every widget, as the page does")
        values.append(default_value(spec) if isinstance(inputs[name], list) else inputs[name])
        if len(spec) > 1 and spec[1].get("control_after_generate"):
            values.append("fixed")  # else the page would change the seed after each run, and no run would be resumed
    return values + ["image"] * uploads(specs)


def uploads(specs: Mapping[str, Sequence[Any]]) -> int:
    """How many upload buttons the page gives a node, after all its other widgets."""
    return sum(any(spec[1].get(option) for option in UPLOADS) for spec in specs.values() if len(spec) > 1)


def slot_type(spec: Sequence[Any]) -> str:
    """Type of an input's slot."""
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def input_slots(info: Mapping[str, Any], specs: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """A node's input slots in the page's order, sockets before widgets, nothing linked yet."""
    optional = info["input"].get("optional", {})
    slots = []
    for name, spec in sorted(specs.items(), key=lambda item: is_widget(item[1])):
        slot: dict[str, Any] = {"name": name, "type": slot_type(spec), "link": None}
        if name in optional:
            slot["shape"] = OPTIONAL_SHAPE
        if is_widget(spec):
            slot["widget"] = {"name": name}
        slots.append(slot)
    button = {"name": "upload", "type": "IMAGEUPLOAD", "widget": {"name": "upload"}, "link": None}
    return slots + [dict(button) for _ in range(uploads(specs))]


def page_node(identifier: str, node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """A node in the page's form, without position, order and links.

    Raises:
        ValueError: an input that the node does not have, or a widget without a value.
    """
    specs = input_specs(info, node["inputs"])
    unknown = node["inputs"].keys() - specs.keys()
    if unknown:
        raise ValueError(f"node {identifier} ({node['class_type']}) has no input {min(unknown)!r}")
    properties: dict[str, Any] = {"Node name for S&R": node["class_type"]}
    files = [value for value in node["inputs"].values() if isinstance(value, str) and value in MODEL_FILES]
    if files:
        properties["models"] = [
            {"name": file, "url": f"{MODEL_FILES[file][1]}/{file}", "directory": MODEL_FILES[file][0]} for file in files
        ]
    return {
        "id": int(identifier),
        "type": node["class_type"],
        "title": node["_meta"]["title"],
        "flags": {},
        "mode": 0,
        "inputs": input_slots(info, specs),
        "outputs": [
            {"name": name, "type": kind, "links": []} for name, kind in zip(info["output_name"], info["output"], strict=True)
        ],
        "properties": properties,
        "widgets_values": widget_values(specs, node["inputs"]),
    }


def connect(nodes: Mapping[str, dict[str, Any]], api: Mapping[str, Any]) -> list[list[Any]]:
    """Enter the links of the API form into the nodes' slots; returns the page's link table."""
    links: list[list[Any]] = []
    for identifier, node in nodes.items():
        for slot, target in enumerate(node["inputs"]):
            source = api[identifier]["inputs"].get(target["name"])
            if isinstance(source, list):
                origin = nodes[source[0]]["outputs"][source[1]]
                link = len(links) + 1
                target["link"] = link
                origin["links"].append(link)
                links.append([link, int(source[0]), source[1], int(identifier), slot, origin["type"]])
    return links


def page_workflow(name: str, api: Mapping[str, Any], object_info: Mapping[str, Any]) -> dict[str, Any]:
    """A workflow in the page's form.

    Args:
        name: key of its note in :data:`NOTES`.
        api: the graph in API form.
        object_info: the host's node descriptions.

    Raises:
        ValueError, KeyError: a node, input or class that is not known.
    """
    sources = {
        identifier: [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        for identifier, node in api.items()
    }
    nodes = {
        identifier: page_node(identifier, api[identifier], object_info[api[identifier]["class_type"]])
        for identifier in TopologicalSorter(sources).static_order()
    }
    links = connect(nodes, api)
    groups = lay_out(nodes, sources)
    last = max(node["id"] for node in nodes.values())
    ordered = [{**node, "order": order} for order, node in enumerate([*nodes.values(), note(name, last + 1, api)])]
    return {
        "revision": 0,
        "last_node_id": last + 1,
        "last_link_id": len(links),
        "nodes": sorted(ordered, key=lambda node: node["id"]),
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def note(name: str, identifier: int, api: Mapping[str, Any]) -> dict[str, Any]:
    """The note that says which file goes where."""
    used = {value for node in api.values() for value in node["inputs"].values() if isinstance(value, str)}
    lines: dict[str, list[str]] = {}
    for file, (folder, address) in MODEL_FILES.items():
        if file in used:
            repository = "/".join(address.removeprefix(f"{HUGGING_FACE}/").split("/")[:2])
            lines.setdefault(f"From [{repository}]({HUGGING_FACE}/{repository}):\n", []).append(f"* {folder}/**{file}**")
    return {
        "id": identifier,
        "type": "MarkdownNote",
        "title": "What goes where",
        "pos": [0, NODE_TITLE],
        "size": [NOTE_WIDTH, NOTE_HEIGHT],
        "flags": {},
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [
            NOTES[name].replace("{files}", "\n\n".join("\n".join([head, *rows]) for head, rows in lines.items()))
        ],
        "color": "#222",
        "bgcolor": "#000",
    }


# ---- layout


def node_size(node: Mapping[str, Any]) -> tuple[int, int]:
    """Size of a node, without its title bar: high enough for both of the page's renderers."""
    sockets = sum("widget" not in slot for slot in node["inputs"])
    height = SLOT_HEIGHT * max(sockets, len(node["outputs"])) + WIDGET_HEIGHT * len(node["widgets_values"]) + NODE_PADDING
    return SIZES.get(node["type"], (NODE_WIDTH, height))


def lay_out(nodes: Mapping[str, dict[str, Any]], sources: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Give every node its place and size; returns the page's groups.

    Args:
        nodes: in an order in which every node comes after its sources.
        sources: the nodes that each node has links from.

    Raises:
        ValueError: a class that is in no group.
    """
    homeless = {node["type"] for node in nodes.values()} - frozenset().union(*(group.classes for group in GROUPS))
    if homeless:
        raise ValueError(f"{min(homeless)} has no place on the page: add it to a group in GROUPS")
    frames: list[dict[str, Any]] = []
    left, right = NOTE_WIDTH + GROUP_GAP, NOTE_WIDTH
    for column in sorted({group.column for group in GROUPS}):
        top = 0
        for group in (group for group in GROUPS if group.column == column):
            members = {identifier: node for identifier, node in nodes.items() if node["type"] in group.classes}
            if not members:
                continue
            width, height = stack(members, sources, left, top)
            bounding = [left, top, width, height]
            frames.append({"id": len(frames) + 1, "title": group.title, "bounding": bounding, "color": "#3f789e", "flags": {}})
            top += height + GROUP_GAP
            right = max(right, left + width)
        left = right + GROUP_GAP
    return frames


def stack(members: Mapping[str, dict[str, Any]], sources: Mapping[str, Sequence[str]], left: int, top: int) -> tuple[int, int]:
    """Place a group's nodes: one column right of another along the links, each filled from the top.

    Returns:
        Width and height of the group.
    """
    depths: dict[str, int] = {}
    for identifier in members:
        inside = [depths[source] + 1 for source in sources[identifier] if source in members]
        depths[identifier] = max(inside, default=0)
    x, bottom = left + GROUP_PADDING, top
    for depth in range(max(depths.values()) + 1):
        column = sorted((node for key, node in members.items() if depths[key] == depth), key=lambda node: node["id"])
        y = top + GROUP_TITLE + NODE_TITLE
        for node in column:
            width, height = node_size(node)
            node["pos"], node["size"] = [x, y], [width, height]
            y += height + GAP_Y
        x += max(node["size"][0] for node in column) + GAP_X
        bottom = max(bottom, y - GAP_Y)
    return x - GAP_X + GROUP_PADDING - left, bottom + GROUP_PADDING - top


# ---- pictures


def contact_sheet(look: Thumbnail) -> Image.Image:
    """Depth above tracks, below the video where that is asked for: the middle frames of two clips of a procedural scene."""
    plan = ClipPlan(look.width, look.height, 17, Fraction(16), source_frames=1 + 16 * (1 + max(THUMBNAIL_CLIPS)))
    scene = make_scene(THUMBNAIL_SCENE)
    rows = []
    if look.video:
        middles = (plan.control_frames(clip)[plan.frames // 2] for clip in THUMBNAIL_CLIPS)
        times = (float(frame / plan.fps * THUMBNAIL_SPEED) for frame in middles)
        rows.append(np.hstack([render(scene, time, look.width, look.height).rgb for time in times]))
    with tempfile.TemporaryDirectory() as folder:
        found = write_scene_clips(Path(folder), scene, plan, look.grid, THUMBNAIL_SPEED)
        rows += [
            np.hstack([next(islice(control.window(plan, clip), plan.frames // 2, None)) for clip in THUMBNAIL_CLIPS])
            for control in (found.dense, found.sparse)
        ]
    return Image.fromarray(np.vstack(rows)).resize(look.picture)


# ---- command line


def read_api_workflows() -> dict[str, dict[str, Any]]:
    """All workflows in API form, by name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((WORKFLOWS / "api").glob("*.json"))}


def write_json(path: Path, graph: Mapping[str, Any], indent: int) -> None:
    """Write a workflow."""
    path.write_text(json.dumps(graph, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m devtools.workflows", description=__doc__)
    host = os.environ.get("COMFYUI_PATH", dev.HOST)
    parser.add_argument("--comfyui", type=Path, default=host, help="ComfyUI folder (COMFYUI_PATH, or what dev.py fetched)")
    parser.add_argument("--pictures", action="store_true", help="draw the .jpg files too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as base, Host(comfyui=Path(options.comfyui), base=Path(base), pack=ROOT) as running:
        object_info = running.object_info()
    for name, given in read_api_workflows().items():
        api = completed(given, object_info)
        path = WORKFLOWS / f"{name}.json"
        write_json(WORKFLOWS / "api" / path.name, api, indent=2)
        write_json(path, page_workflow(name, api, object_info), indent=1)
        print(path)
        if options.pictures:
            contact_sheet(THUMBNAILS[name]).save(path.with_suffix(".jpg"), quality=85, optimize=True)
            print(path.with_suffix(".jpg"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
