"""Depth of a driving video: by networks, by optical flow without weights, or as the user already has it; aligned over time."""
