"""Commands of the people who work on this project: demo, checks, parity, benchmarks, the host for tests."""
