"""What a clip depends on, part by part: equal keys mean equal latents and pixels.

The parts have the same names and, where they are settings, the same words whatever renders the clip. Networks are named by what
renders them (:class:`longvie_core.run.render.Networks`): a hash of files, or of the host's graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..disk.fingerprints import text_sha256
from ..model.clip import ModalityRange
from .control_latents import ControlWindow
from .job import Job, LoopSettings, Script

OFF = "off"

IMPLIED = {
    "dense strength": ("dense control", "strengths"),
    "sparse strength": ("sparse control", "strengths"),
    "strengths": ("dense control", "sparse control"),
}
"""Parts that change along with another one: a control at strength 0 does not count. A report names the cause alone."""


@dataclass(frozen=True)
class ClipKey:
    """What a clip depends on, so that a change can be named.

    Args:
        parts: part (such as ``"prompt"``, or ``"sampler/vae"`` for a part of a group) -> hash or short text.
        former: the parts under which LongVie 0.1 would have kept the same clip; ``None`` = it could not have.
    """

    parts: Mapping[str, str]
    former: Mapping[str, str] | None = None

    def fingerprint(self, previous: str) -> str:
        """Hash of the parts and of the clip before (``""`` for the first)."""
        return _fingerprint(self.parts, previous)

    def matches(self, fingerprint: str, previous: str) -> bool:
        """Whether a finished clip of this fingerprint, after the clip ``previous``, is the one that is wanted."""
        former = [] if self.former is None else [_fingerprint(self.former, previous)]
        return fingerprint in (self.fingerprint(previous), *former)

    def changed(self, old: Mapping[str, str]) -> list[str]:
        """Names of the parts that differ from those of a finished clip, in the words of the version that wrote it."""
        parts = self.parts if self.former is None or old.keys() & self.parts.keys() - self.former.keys() else self.former
        names = {name for name in parts.keys() | old.keys() if parts.get(name) != old.get(name)}
        implied = {effect for cause in names for effect in IMPLIED.get(cause, ())}
        return sorted(names - implied)


def _fingerprint(parts: Mapping[str, str], previous: str) -> str:
    return text_sha256(json.dumps([previous, sorted(parts.items())], separators=(",", ":")))


def in_words(names: Sequence[str]) -> tuple[str, str]:
    """Names of parts as a report says them: their groups, and in brackets the parts of these; both may be empty."""
    groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
    members = ", ".join(name.partition("/")[2] for name in names if "/" in name)
    return groups, f" ({members})" if members else ""


@dataclass(frozen=True)
class NetworkParts:
    """What a clip depends on beside its script and the loop's settings.

    Args:
        networks: ``"model"``, ``"control network"``, ``"vae"``, ``"image encoder"`` and ``"method"`` (of sampling), each ->
            text that is equal only where they compute the same bits.
        text_encoder: the same for what encodes prompts.
        sigmas: of the steps.
        guidance: classifier-free guidance scale.
        dense, sparse: strength and range of the modalities.
    """

    networks: Mapping[str, str]
    text_encoder: str
    sigmas: tuple[float, ...]
    guidance: float
    dense: ModalityRange
    sparse: ModalityRange


def clip_parts(job: Job, clip: int, networks: NetworkParts) -> dict[str, str]:
    """Everything that can change the latents or pixels of a clip, and nothing else."""
    script, prompt = job.script, job.script.prompts.of(clip)
    plan = script.plan
    positive, negative = script.prompts.texts(clip)
    parts = {
        "plan": f"{plan.width}x{plan.height} {plan.frames} frames overlap {plan.overlap}",  # the rate is the joined video's
        "frames taken": f"{plan.kept_frames(clip)}",
        "prompt": text_sha256(positive),
        "negative prompt": text_sha256(negative),
        "text encoder": networks.text_encoder,
        "seed offset": str(prompt.seed_offset),
        "noise": job.loop.noise.description,
        **_control_parts(script, clip, networks),
        "sampler/steps": f"{len(networks.sigmas) - 1}, sigmas {text_sha256(repr(networks.sigmas))[:16]}",
        "sampler/guidance": repr(float(networks.guidance)),
        **{f"sampler/{name}": value for name, value in networks.networks.items()},
    }
    if clip == 0:
        return {**parts, "first frame": hashlib.sha256(script.first_frame.data).hexdigest()}
    return {**parts, **_parts_of_later_clips(job.loop)}


def _control_parts(script: Script, clip: int, networks: NetworkParts) -> dict[str, str]:
    """Controls that act in this clip, and how strongly; a clip's own strength takes the place of the sampler's."""
    parts, strengths = {}, []
    own = script.prompts.of(clip).strengths
    for name in ("dense", "sparse"):
        control: ControlWindow | None = getattr(script, name)
        modality: ModalityRange = getattr(networks, name)
        own_strength: float | None = getattr(own, name)
        if own_strength is not None:
            parts[f"{name} strength"] = repr(float(own_strength))
        strength = modality.strength if own_strength is None else own_strength
        if control is None or strength == 0:
            strengths.append(f"{name} {OFF}")
            continue
        parts[f"{name} control"] = control.digest(script.plan, clip)
        shown = "its own" if own_strength is not None else repr(float(strength))
        strengths.append(f"{name} {shown} from {float(modality.start_percent)} to {float(modality.end_percent)}")
    return {**parts, "strengths": ", ".join(strengths)}


def _parts_of_later_clips(loop: LoopSettings) -> dict[str, str]:
    """What matters only where there is a clip before."""
    history, anchor = loop.history, loop.anchor
    return {
        "sampler/history": f"{history.frames} frames, first frame sigma {float(history.first_frame_sigma)}"
        if history.frames
        else OFF,
        "sampler/anchor": f"{anchor.space} {float(anchor.strength)}" if anchor.active else OFF,
    }


def parts_of_0_1(job: Job, clip: int) -> dict[str, str]:
    """The parts that LongVie 0.1 wrote in both of its ways to render; each of them had others beside."""
    script = job.script
    plan, prompt = script.plan, script.prompts.of(clip)
    positive, negative = script.prompts.texts(clip)
    parts = {
        "plan": f"{plan.width}x{plan.height} {plan.frames} frames overlap {plan.overlap} at {plan.fps} fps",
        "frames taken": f"{plan.kept_frames(clip)}",
        "prompt": text_sha256(positive),
        "negative prompt": text_sha256(negative),
        "seed offset": str(prompt.seed_offset),
        "dense control": script.dense.digest(plan, clip) if script.dense else "none",
        "sparse control": script.sparse.digest(plan, clip) if script.sparse else "none",
    }
    if clip == 0:
        parts["first frame"] = hashlib.sha256(script.first_frame.data).hexdigest()
    return parts
