"""Degradation-aware training (P1 section 3.4; P2 section 3.3): what is weakened in training so that long runs hold.

Three places: the dense control's features and its pictures (:mod:`.dense`), and the pictures that a clip starts from, first
frame and history (:mod:`.frames`). How long the history is, is drawn in :mod:`.history`.

Drawing and applying are apart: ``draw_*`` reads every random choice from a CPU ``torch.Generator`` and returns small frozen
values; applying those is deterministic.
"""
