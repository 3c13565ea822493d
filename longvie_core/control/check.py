"""Whether controls fit the plan and each other; asked before any sampling starts."""

from __future__ import annotations

from ..plan import ClipPlan
from .control import Control


def check_controls(plan: ClipPlan, dense: Control | None, sparse: Control | None) -> ClipPlan:
    """The plan with its length taken from the controls where it was left open.

    Raises:
        ValueError: no control, one in the other's place, too few frames for a clip, or lengths that do not agree.
    """
    controls = {name: control for name, control in (("dense", dense), ("sparse", sparse)) if control is not None}
    if not controls:
        raise ValueError("no control is connected: connect dense (depth), sparse (tracks) or both")
    for name, control in controls.items():
        if control.modality != name:
            raise ValueError(f"a {control.modality} control is connected to the input '{name}': swap the two")
    lengths = {name: control.length(plan.frames, plan.overlap) for name, control in controls.items()}
    # A control with a file for each clip has the length of whole clips; a continuous one has the video's true length.
    true_lengths = {name: length for name, length in lengths.items() if not controls[name].per_clip} or lengths
    if len(set(true_lengths.values())) > 1:
        raise ValueError(
            f"dense has {lengths['dense']} frames and sparse has {lengths['sparse']}: both must come from the same video"
        )
    plan = plan.resolved(next(iter(true_lengths.values())))
    for name, control in controls.items():
        if control.per_clip and len(control.paths) < plan.clips:
            raise ValueError(
                f"{name} has {len(control.paths)} clips, but the plan has {plan.clips} ({plan.source_frames} source frames): "
                "both controls must come from the same video"
            )
    return plan
