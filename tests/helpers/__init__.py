"""What tests of more than one file share, imported everywhere as ``tests.helpers.<module>``."""
