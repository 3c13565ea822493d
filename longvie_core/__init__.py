"""LongVie without ComfyUI: everything that the nodes compute, importable and testable on its own."""
