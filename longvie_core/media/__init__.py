"""Video and sound files, streamed with PyAV."""
