"""Exact K-matrices of known maps, built in float64 on the CPU and rounded once to the type asked for.

The results are on torch's default device.
"""

from kaleido_audio.exact.circuit import circuit
from kaleido_audio.exact.convolutions import circulant, convolution, hankel, toeplitz
from kaleido_audio.exact.fourier import dft, dft2, idft, idft2
from kaleido_audio.exact.haar import haar
from kaleido_audio.exact.hadamard import hadamard
from kaleido_audio.exact.hartley import hartley
from kaleido_audio.exact.low_rank import low_rank
from kaleido_audio.exact.permutations import bit_reversal, permutation
from kaleido_audio.exact.products import diagonal, kronecker
from kaleido_audio.exact.sparse import sparse
from kaleido_audio.exact.structured_layers import acdc, fastfood
from kaleido_audio.exact.trigonometric import dct, dst, idct, idst

__all__ = [
    "acdc",
    "bit_reversal",
    "circuit",
    "circulant",
    "convolution",
    "dct",
    "dft",
    "dft2",
    "diagonal",
    "dst",
    "fastfood",
    "haar",
    "hadamard",
    "hankel",
    "hartley",
    "idct",
    "idft",
    "idft2",
    "idst",
    "kronecker",
    "low_rank",
    "permutation",
    "sparse",
    "toeplitz",
]
