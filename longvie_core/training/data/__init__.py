"""Training clips: read or rendered, encoded once, kept in tables."""
