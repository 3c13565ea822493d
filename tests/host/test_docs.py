"""The nodes' help pages: one a node, served by the host, naming every socket."""

import re
import urllib.request
from typing import Any

import pytest

from devtools.host import Host
from tests.helpers.places import ROOT

DOCS = ROOT / "web" / "docs"
PREFIX = "LongVie"


@pytest.fixture(scope="module")
def nodes(host: Host) -> dict[str, Any]:
    """Descriptions of the pack's nodes."""
    return {name: node for name, node in host.object_info().items() if name.startswith(PREFIX)}


def sockets(node: dict[str, Any]) -> dict[str, list[Any]]:
    """The inputs that a user sees."""
    return {name: spec for kind in ("required", "optional") for name, spec in node["input"].get(kind, {}).items()}


def page(host: Host, name: str) -> str:
    """A node's help page as the host's own page fetches it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{host.url}/extensions/longvie/docs/{name}/en.md", timeout=60) as answer:
        return answer.read().decode("utf-8")


def table_names(text: str) -> set[str]:
    """Names in the first column of the tables of a help page."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_node_has_a_help_page_and_every_page_a_node(nodes: dict[str, Any]) -> None:
    assert len(nodes) >= 14
    assert {path.name for path in DOCS.iterdir()} == set(nodes)


def test_help_pages_are_served_and_name_every_socket(host: Host, nodes: dict[str, Any]) -> None:
    for name, node in nodes.items():
        text = page(host, name)
        assert text.startswith(f"# {node['display_name']}\n"), name
        assert 15 <= len(text.splitlines()) <= 40, name
        assert table_names(text) == sockets(node).keys() | set(node["output_name"]), name


def test_a_page_that_leaves_a_socket_out_is_noticed(nodes: dict[str, Any]) -> None:
    text = (DOCS / "LongVieSigmas" / "en.md").read_text(encoding="utf-8")
    assert table_names(text.replace("| `shift` |", "|")) != sockets(nodes["LongVieSigmas"]).keys() | {"sigmas"}
