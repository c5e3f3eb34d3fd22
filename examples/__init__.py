"""Short programs that show what the package is for; each runs as ``python -m examples.NAME``."""
