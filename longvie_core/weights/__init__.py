"""Weight files as they are published, read strictly."""
