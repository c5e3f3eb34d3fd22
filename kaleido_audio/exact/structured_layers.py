"""Structured replacements of dense layers: Fastfood and ACDC."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kaleido_audio.exact.algebra import (
    Vector,
    corner,
    is_power_of_two,
    read_vectors,
    scale_inputs,
    scale_outputs,
)
from kaleido_audio.exact.arguments import made_on_cpu
from kaleido_audio.exact.extension import mirrored
from kaleido_audio.exact.fourier import circular_convolution
from kaleido_audio.exact.hadamard import hadamard_factor
from kaleido_audio.exact.permutations import check_permutation, increasing_benes
from kaleido_audio.factors import balanced, identity_factors
from kaleido_audio.kmatrix import KMatrix, padded_size


@made_on_cpu
def fastfood(
    s: Vector, g: Vector, p: Sequence[int] | Tensor, b: Vector, *, dtype: torch.dtype | None = None
) -> KMatrix:
    """Fastfood: S H G P H B with diagonal S, G and B, a permutation P and the Hadamard matrix H.

    The stages of H commute, so that H is both a B* and a B; P is a B and then a B*. With the diagonals in the outer
    stages that is B*, B, B*, B, so it is in (BB*)^2_1, and real for real vectors.

    Args:
        s: outer diagonal ``(n,)``, n a power of two. Le et al. have the factor 1 / (sigma sqrt(n)) in front, which is
            to be part of s here: H has entries 1 and -1.
        g: middle diagonal ``(n,)``.
        p: permutation of 0, ..., n - 1: P x is ``x[p]``.
        b: inner diagonal ``(n,)``.
        dtype: real or complex; by default that of the vectors, float32 at least.

    Raises:
        ValueError: n is not a power of two, lengths differ, or p is not a permutation; complex vectors and a real
            dtype.

    Source: Le, Sarlós, Smola, "Fastfood: computing Hilbert space expansions in loglinear time", ICML 2013.

    >>> ones = torch.ones(4)
    >>> fastfood(ones, ones, [0, 1, 2, 3], ones)(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [4.0, 8.0, 12.0, 16.0]
    """
    diagonals, dtype = read_vectors("Fastfood", dtype, False, s=s, g=g, b=b)
    order = check_permutation(p)
    n = len(order)
    lengths = [len(d) for d in diagonals]
    if not is_power_of_two(n) or n == 1 or lengths != [n] * 3:
        raise ValueError(f"expected s, g, b and p of one length, a power of two >= 2, got lengths {(*lengths, n)}")
    outer, middle, inner = diagonals
    hadamard = hadamard_factor(n)
    factors = [
        scale_inputs(hadamard.unsqueeze(0), inner),
        scale_outputs(increasing_benes(order), middle),
        scale_outputs(hadamard.flip(0).unsqueeze(0), outer),
    ]
    return corner(n, torch.cat(factors), dtype)


@made_on_cpu
def acdc(a: Vector, d: Vector, *, dtype: torch.dtype | None = None) -> KMatrix:
    """ACDC: ``y = idct(d * dct(a * x))`` with the orthonormal cosine transform of type 2, for any n.

    In the row vectors of Moczulski et al. y = x A C D C^-1, with A and D diagonal. The transforms around d are a
    circular convolution of length 2n of the symmetric extension of a * x, whose kernel has the eigenvalues d. The
    extension is one B* and the convolution one BB*, so ACDC is in (BB*)^2_2 for n a power of two and in (BB*)^2_3
    for any other n. The entries are real for real a and d, to rounding, but the factors are complex.

    Args:
        a: diagonal before the transform ``(n,)``.
        d: diagonal between the transforms ``(n,)``.
        dtype: complex64 or complex128; by default the complex type of the vectors' precision.

    Raises:
        ValueError: a and d are not vectors of one length, or dtype is real.

    Source: Moczulski, Denil, Appleyard, de Freitas, "ACDC: a structured efficient linear layer", ICLR 2016.

    >>> x = torch.randn(6, dtype=torch.float64)
    >>> torch.allclose(acdc(x, torch.full((6,), 3.0).double())(torch.ones(6).double()).real, 3 * x)
    True
    """
    (before, between), dtype = read_vectors("ACDC", dtype, True, a=a, d=d)
    n = len(before)
    if len(between) != n:
        raise ValueError(f"expected a and d of one length, got {n} and {len(between)}")
    # The extension has no component at frequency n.
    kernel = torch.fft.ifft(torch.cat([between, between.new_zeros(1), between[1:].flip(0)]))
    size = 2 * n if is_power_of_two(n) else padded_size(n, 3)
    wrapped = (torch.arange(size) + n - 1) % size - (n - 1)
    extension = torch.stack([mirrored(size, 1, torch.ones(size // 2, dtype=torch.bool)), identity_factors(1, size)[0]])
    extension = scale_inputs(extension, torch.cat([before, before.new_ones(size - n)]))
    factors = torch.cat([extension, circular_convolution(kernel[wrapped % (2 * n)])])
    return corner(n, balanced(factors), dtype)
