"""One module a host: what turns a clip's inputs into latents and frames."""
