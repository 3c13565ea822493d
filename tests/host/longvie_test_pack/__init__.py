"""Nodes that only the host tests need: values shown as JSON, raw depth from a file, stand-ins for big encoders, odd values."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

SHOWN_VALUES = 64
"""Tensors of more values than this are shown by their shape alone."""

TEXT_TOKENS, TEXT_WIDTH = 3, 4096
IMAGE_TOKENS, IMAGE_WIDTH = 257, 1280


def pack_module(name: str) -> ModuleType:
    """A module of the LongVie pack as the host has loaded it, under whatever package name that was."""
    return next(module for key, module in list(sys.modules.items()) if key.endswith(f".longvie_core.{name}"))


def plain(value: object) -> object:
    """A value as JSON can hold it; dataclasses by their fields, host objects by the name of their class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, torch.Tensor):
        return value.tolist() if value.numel() <= SHOWN_VALUES else {"shape": list(value.shape)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path | Fraction):
        return str(value)
    return value if isinstance(value, str | int | float | None) else type(value).__name__


def seeded(text: str, *shape: int) -> torch.Tensor:
    """Standard normal numbers that depend on a text and on nothing else."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TextEncoder:
    """A CLIP that turns each text into seeded noise, and notes in a file of the output folder what it was asked for."""

    def __init__(self, log: str) -> None:
        self.log = Path(folder_paths.get_output_directory()) / log

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str) -> list:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{tokens}\n")
        return [[seeded(tokens, 1, TEXT_TOKENS, TEXT_WIDTH), {"pooled_output": None}]]


class ImageEncoder:
    """A CLIP vision that turns each picture into seeded noise."""

    image_size = 224

    def encode_image(self, image: torch.Tensor, crop: bool = True) -> SimpleNamespace:
        tokens = seeded(f"{crop} {image.double().mean().item()}", 1, IMAGE_TOKENS, IMAGE_WIDTH)
        return SimpleNamespace(penultimate_hidden_states=tokens)


class TestShow(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestShow", category="test", is_output_node=True, inputs=[io.AnyType.Input("value")])

    @classmethod
    def execute(cls, value) -> io.NodeOutput:
        return io.NodeOutput(ui={"text": [json.dumps(plain(value))]})


class TestSignal(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestSignal",
            category="test",
            inputs=[
                io.String.Input("file"),
                io.String.Input("kind"),
                io.Int.Input("frames"),
                io.Int.Input("height"),
                io.Int.Input("width"),
            ],
            outputs=[io.Custom("LONGVIE_SIGNAL").Output("signal")],
        )

    @classmethod
    def execute(cls, file, kind, frames, height, width) -> io.NodeOutput:
        path = Path(folder_paths.get_input_directory()) / file
        return io.NodeOutput(pack_module("control.raw_depth").RawDepth(path, kind, frames, height, width, Fraction(16)))


class TestTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestTextEncoder", category="test", inputs=[io.String.Input("log")], outputs=[io.Clip.Output("clip")]
        )

    @classmethod
    def execute(cls, log) -> io.NodeOutput:
        return io.NodeOutput(TextEncoder(log))


class TestClipVision(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(node_id="TestClipVision", category="test", inputs=[], outputs=[io.ClipVision.Output("clip_vision")])

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(ImageEncoder())


class TestNumber(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestNumber", category="test", inputs=[io.String.Input("text")], outputs=[io.Float.Output("number")]
        )

    @classmethod
    def execute(cls, text) -> io.NodeOutput:
        return io.NodeOutput(float(text))


class TestPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TestPicture",
            category="test",
            inputs=[io.String.Input("text"), io.Int.Input("size")],
            outputs=[io.Image.Output("image")],
        )

    @classmethod
    def execute(cls, text, size) -> io.NodeOutput:
        image = torch.rand(1, size, size, 3)
        image[0, 1, 2, 0] = float(text)
        return io.NodeOutput(image)


class TestExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TestShow, TestSignal, TestTextEncoder, TestClipVision, TestNumber, TestPicture]


async def comfy_entrypoint() -> TestExtension:
    return TestExtension()
