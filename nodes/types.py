"""Sockets of this pack. Each payload is a small frozen dataclass of paths, settings and host objects, never of big tensors."""

from __future__ import annotations

from comfy_api.latest import io

Plan = io.Custom("LONGVIE_PLAN")
"""longvie_core.plan.ClipPlan"""

RawDepth = io.Custom("LONGVIE_SIGNAL")
"""longvie_core.control.raw_depth.RawDepth: raw, unnormalized depth on disk"""

Control = io.Custom("LONGVIE_CONTROL")
"""longvie_core.control.control.Control: control pictures on disk, addressed by clip"""

Prompts = io.Custom("LONGVIE_PROMPTS")
"""nodes.networks.PromptsPayload"""

Sampler = io.Custom("LONGVIE_SAMPLER")
"""nodes.networks.SamplerPayload"""

State = io.Custom("LONGVIE_STATE")
"""nodes.sampler.ClipState"""

ModelPatch = io.Custom("MODEL_PATCH")
"""The host's own type for networks that are loaded beside a MODEL."""
