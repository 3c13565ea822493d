"""A procedural world whose depth and tracks are exactly known."""
