"""Exact K-matrices of known maps, built in float64 and rounded once to the type asked for."""

from kaleido_audio.exact.circuit import circuit
from kaleido_audio.exact.fourier import dft, idft
from kaleido_audio.exact.hadamard import hadamard
from kaleido_audio.exact.low_rank import low_rank
from kaleido_audio.exact.permutations import bit_reversal, permutation
from kaleido_audio.exact.sparse import sparse

__all__ = ["bit_reversal", "circuit", "dft", "hadamard", "idft", "low_rank", "permutation", "sparse"]
