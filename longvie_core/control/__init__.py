"""Control signals: raw depth and tracks in, the pictures that the control network was trained on out."""
