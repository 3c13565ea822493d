"""The page's form of dynamic combos and upload buttons, as ComfyUI's page itself writes it, on made-up node descriptions."""

from __future__ import annotations

from typing import Any

import pytest

from devtools.workflows.page import DYNAMIC_COMBO, completed, input_slots, input_specs, page_node

INFO: dict[str, Any] = {
    "input": {
        "required": {
            "engine": [
                DYNAMIC_COMBO,
                {
                    "options": [
                        {"key": "plain", "inputs": {"required": {}}},
                        {
                            "key": "deep",
                            "inputs": {
                                "required": {
                                    "model": ["COMBO", {"options": ["a", "b"]}],
                                    "mode": [
                                        DYNAMIC_COMBO,
                                        {
                                            "options": [
                                                {"key": "x", "inputs": {"required": {"size": ["INT", {"default": 3}]}}},
                                                {"key": "y", "inputs": {"required": {}}},
                                            ]
                                        },
                                    ],
                                },
                                "optional": {"guide": ["IMAGE", {}]},
                            },
                        },
                    ]
                },
            ],
            "file": ["COMBO", {"options": ["one.mp4"], "video_upload": True}],
        },
        "optional": {"seed": ["INT", {"default": 7, "control_after_generate": True}]},
    },
    "input_order": {"required": ["engine", "file"], "optional": ["seed"]},
    "output": ["VIDEO"],
    "output_name": ["video"],
}


def node(**inputs: Any) -> dict[str, Any]:
    return {"class_type": "Test", "inputs": inputs, "_meta": {"title": "Test"}}


def test_what_a_choice_brings_follows_it_under_the_pages_names() -> None:
    assert list(input_specs(INFO, {"engine": "plain"})) == ["engine", "file", "seed"]
    chosen = {"engine": "deep", "engine.mode": "x"}
    assert list(input_specs(INFO, chosen)) == [
        *("engine", "engine.model", "engine.mode", "engine.mode.size", "engine.guide", "file", "seed")
    ]


def test_values_are_stored_flat_and_the_upload_button_last() -> None:
    inputs = {"engine": "deep", "engine.model": "b", "engine.mode": "x", "engine.mode.size": 5, "file": "one.mp4", "seed": 1}
    page = page_node("3", node(**inputs), INFO)
    assert page["widgets_values"] == ["deep", "b", "x", 5, "one.mp4", 1, "fixed", "image"]
    names = [slot["name"] for slot in page["inputs"]]
    assert names == ["engine.guide", "engine", "engine.model", "engine.mode", "engine.mode.size", "file", "seed", "upload"]
    assert "widget" not in page["inputs"][0] and page["inputs"][-1]["type"] == "IMAGEUPLOAD"


def test_a_slot_that_no_choice_brings_is_not_there() -> None:
    assert [slot["name"] for slot in input_slots(INFO, input_specs(INFO, {"engine": "plain"}))] == [
        *("engine", "file", "seed", "upload")
    ]
    with pytest.raises(ValueError, match=r"node 3 \(Test\) has no input 'engine.model'"):
        page_node("3", node(**{"engine": "plain", "engine.model": "b", "file": "one.mp4", "seed": 1}), INFO)


def test_widgets_that_are_left_out_get_their_defaults() -> None:
    def filled(**inputs: Any) -> dict[str, Any]:
        return completed({"3": node(**inputs)}, {"Test": INFO})["3"]["inputs"]

    assert filled() == {"engine": "plain", "file": "one.mp4", "seed": 7}
    assert filled(engine="deep", **{"engine.model": "b"}) == {
        **{"engine": "deep", "engine.model": "b", "engine.mode": "x", "engine.mode.size": 3},
        **{"file": "one.mp4", "seed": 7},
    }
    assert filled(seed=["1", 0])["seed"] == ["1", 0]


def test_a_choice_that_is_not_offered_is_named() -> None:
    with pytest.raises(ValueError, match="'engine' does not offer 'other': choose one of plain, deep"):
        input_specs(INFO, {"engine": "other"})


def test_a_widget_without_anything_to_put_in_is_named() -> None:
    info = {**INFO, "input": {"required": {"file": ["COMBO", {"options": []}]}}, "input_order": {"required": ["file"]}}
    with pytest.raises(ValueError, match="a widget of type COMBO has no default"):
        completed({"3": node()}, {"Test": info})
