"""Benchmarks of braintools_ckpt against its peers and the machine: ``python -m benchmarks --help``."""
