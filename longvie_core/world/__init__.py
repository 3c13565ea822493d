"""A procedural world with exact depth and exact tracks: demo input, ground truth for measurements, training data."""
