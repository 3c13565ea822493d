"""LongVie for ComfyUI: minutes-long controllable video, clip by clip."""

from .nodes.pack import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
