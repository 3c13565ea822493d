"""Video and sound files, streamed with PyAV: looked at, read, written, joined; and a driving video at the plan's rate and size.

P1 in these modules is LongVie (arXiv 2508.03694), P2 is LongVie 2 (arXiv 2512.13604).
"""
