"""Do the controls fit the plan and each other? Asked before any sampling starts."""

from __future__ import annotations

from ..plan import ClipPlan
from .control import Control


def check_controls(plan: ClipPlan, dense: Control | None, sparse: Control | None) -> ClipPlan:
    """The plan with its length taken from the controls where it was left open.

    Raises:
        ValueError: no control, a control in the other's place, too few frames for a clip, or lengths that do not agree.
    """
    controls = {"dense": dense, "sparse": sparse}
    given = {name: control for name, control in controls.items() if control is not None}
    if not given:
        raise ValueError("no control is connected: connect dense (depth), sparse (tracks) or both")
    for name, control in given.items():
        if control.modality != name:
            raise ValueError(f"a {control.modality} control is connected to the input '{name}': swap the two")
    lengths = {name: control.length(plan.frames, plan.overlap) for name, control in given.items()}
    # A control with a file for each clip is as long as whole clips are; a continuous one knows the video's true length.
    true_lengths = {name: length for name, length in lengths.items() if not given[name].per_clip} or lengths
    if len(set(true_lengths.values())) > 1:
        raise ValueError(
            f"dense has {lengths['dense']} frames and sparse has {lengths['sparse']}: both must come from the same video"
        )
    plan = plan.resolved(next(iter(true_lengths.values())))
    for name, control in given.items():
        if control.per_clip and len(control.paths) < plan.clips:
            raise ValueError(
                f"{name} has {len(control.paths)} clips, but the plan has {plan.clips} ({plan.source_frames} source frames): "
                "both controls must come from the same video"
            )
    return plan
