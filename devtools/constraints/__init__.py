"""Versions that the tests passed with, a file for each Python; dev.py's own environment is made of them."""
