"""Where the nodes lie on the page: groups in columns, each node right of what it gets its inputs from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


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
