"""Depth of a driving video, whatever it comes from."""
