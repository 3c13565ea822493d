"""Point tracks of a driving video: followed, then drawn."""
