"""The note in each workflow: what it is for, its weights with their addresses, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from devtools.workflows.layout import NODE_TITLE, NOTE_HEIGHT, NOTE_WIDTH

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
Every clip is on disk as soon as it is done: `output/longvie/<run_name>/clip_0001_....mp4`, ... Queueing again goes on after
the last finished clip. Try one clip first: set *clips* to `1`, then clear it.
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
`output/longvie/<run_name>/clip_0001_....mp4`, ... Queueing again goes on after the last finished clip; depth and tracks are
kept, too. Try one clip first: set *clips* to `1`, then clear it.

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
