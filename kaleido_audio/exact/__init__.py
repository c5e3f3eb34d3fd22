"""Exact K-matrices of known maps, built in float64 and rounded once to the type asked for."""

from kaleido_audio.exact.fourier import dft, idft
from kaleido_audio.exact.hadamard import hadamard
from kaleido_audio.exact.permutations import bit_reversal, permutation

__all__ = ["bit_reversal", "dft", "hadamard", "idft", "permutation"]
