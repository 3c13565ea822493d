"""Benchmarks: ``python dev.py bench NAME``. Each prints one JSON object as its last line."""
