"""Training of LongVie's control network: initialisation, degradation, losses, and the loop on ``accelerate``.

Two papers are cited by tag: P1 = LongVie (arXiv 2508.03694), P2 = LongVie 2 (arXiv 2512.13604). "The reference" is the training
code that their authors released. What neither gives is marked as ours.
"""
