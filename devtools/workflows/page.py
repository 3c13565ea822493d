"""A graph in API form as the page writes it: inputs and widgets in the order of the host's descriptions, links as lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from devtools.workflows.layout import lay_out
from devtools.workflows.notes import MODEL_FILES, note

DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
"""A choice that brings inputs of its own: on the page they follow it, named ``choice.input``."""
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", DYNAMIC_COMBO}
UPLOADS = ("image_upload", "video_upload")
"""Options of a combo beside which the page puts an upload button, which takes a place among the widgets."""
OPTIONAL_SHAPE = 7
"""LiteGraph's shape of an input that may stay open."""


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
