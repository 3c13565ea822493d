"""The workflows as ComfyUI's page loads them: each graph of ``workflows/api``, laid out, in ``workflows``."""
