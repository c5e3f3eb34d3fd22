"""Speed beside the peers that a user would pick.

``python -m benchmarks.kmatrix`` and ``python -m benchmarks.featurizer`` print tables and write them, the raw times and
a figure to ``runs/benchmarks``.
"""
