"""Write the workflows anew.

``python -m devtools.workflows`` asks a real host for its node descriptions, gives the widgets that ``api/NAME.json`` does not
name their defaults (the page queues every widget) and writes ``NAME.json`` for each; ``--pictures`` writes the ``NAME.jpg``
that the host's template browser shows, too.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dev
from devtools.host import Host
from devtools.workflows.page import completed, page_workflow
from devtools.workflows.pictures import THUMBNAILS, draw_thumbnail

WORKFLOWS = dev.ROOT / "workflows"


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
    with tempfile.TemporaryDirectory() as base, Host(comfyui=Path(options.comfyui), base=Path(base), pack=dev.ROOT) as running:
        object_info = running.object_info()
    for name, graph in read_api_workflows().items():
        api = completed(graph, object_info)
        path = WORKFLOWS / f"{name}.json"
        write_json(WORKFLOWS / "api" / path.name, api, indent=2)
        write_json(path, page_workflow(name, api, object_info), indent=1)
        print(path)
        if options.pictures:
            draw_thumbnail(THUMBNAILS[name]).save(path.with_suffix(".jpg"), quality=85, optimize=True)
            print(path.with_suffix(".jpg"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
