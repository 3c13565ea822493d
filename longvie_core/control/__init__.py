"""What drives a video: depth (dense) and point tracks (sparse) of a driving video, as pictures that the network reads.

P1 in this wing is LongVie (arXiv 2508.03694), P2 is LongVie 2 (arXiv 2512.13604); «the reference» is their authors' code. Both
use the same controls: depth normalized over the whole video, near = black, and coloured rectangles at tracked points.
"""
