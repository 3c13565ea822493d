"""A whole video: what is wanted, what is kept, what is rendered, and its folder on disk."""
