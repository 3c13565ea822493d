"""Per-clip prompts."""

from __future__ import annotations

from comfy_api.latest import io

from ..longvie_core.run.prompts import REFERENCE_NEGATIVE, check_characters, parse_prompts
from . import types
from .contents import graph_fingerprint
from .networks import PromptsPayload


class LongViePromptSchedule(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LongViePromptSchedule",
            display_name="LongVie Prompt Schedule",
            category="LongVie",
            description="One prompt a clip. Each distinct text is encoded once. Without CLIP the video is made without text.",
            search_aliases=["caption", "per clip prompt"],
            inputs=[
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One prompt a line, one line a clip; the last line is used for all further clips. Or a JSON list: "
                    'strings, or objects like {"prompt": "...", "negative": "...", "seed_offset": 0, "dense_strength": 1, '
                    '"sparse_strength": 1}. A strength given here replaces the sampler\'s for that clip.',
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default=REFERENCE_NEGATIVE,
                    tooltip="Negative prompt of every clip. The default is Wan's own, which LongVie uses.",
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Text encoder (umt5_xxl, type wan). Leave open for models without text."
                ),
            ],
            outputs=[types.Prompts.Output("prompts", tooltip="For the clip loop and Sample Clip.")],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def execute(cls, prompts, negative, clip=None) -> io.NodeOutput:
        check_characters("the negative prompt", negative)
        encoder = graph_fingerprint(cls.hidden.dynprompt, cls.hidden.unique_id, "clip")
        return io.NodeOutput(PromptsPayload(parse_prompts(prompts), negative, clip, encoder))

    @classmethod
    def validate_inputs(cls, prompts=None, negative=None) -> bool | str:
        try:
            parse_prompts(prompts or "")
            check_characters("the negative prompt", negative or "")
        except ValueError as error:
            return str(error)
        return True
