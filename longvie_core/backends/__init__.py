"""Hosts of the networks: ComfyUI and diffusers."""
