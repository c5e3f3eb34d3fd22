"""KPermutation: a permutation that is learned, through doubly stochastic butterfly matrices."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio import ops
from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.nn.structured import along, check_positive, real_dtype
from kaleido_audio.tables import ModuleWithTables

_RELAXATIONS = ("sigmoid", "cos2")


class KPermutation(ModuleWithTables):
    """A relaxed permutation in (BB*)^w: every 2 x 2 block keeps its pair with probability p, else swaps it.

    A block is ``[[p, 1 - p], [1 - p, p]]``, so the whole is a product of doubly stochastic matrices and doubly
    stochastic itself; with every p at 0 or 1 it is a permutation. One BB* contains every permutation (a Benes
    network), so width 1 suffices; more width gives more ways to each.

    Three ways to apply it: ``forward(x)``, the mean over independent blocks; `sample`, one random draw; and
    `permutation` or `harden`, every p rounded. Anneal by assigning to ``temperature`` and by adding `entropy` to
    the loss: both drive the blocks to 0 or 1.

    Args:
        n: size of the dimension, a power of two.
        width: number of BB* products.
        relaxation: ``"sigmoid"``: p = sigmoid(theta / temperature). ``"cos2"``: p = cos(theta)^2, whose gradient
            is not that small in the tails; temperature then concerns the samples that are not hard, and gradients.
        temperature: of the relaxation; towards 0 the blocks become hard.
        device: of the parameter.
        dtype: real type of the parameter, `torch.get_default_dtype()` by default.

    The parameter ``theta`` is ``(2 * width, log2 n, n / 2)``, one number a block, blocks in the order of their
    first index. It starts where p = 1/2, with normal noise of 0.1 so that no two paths are alike.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, theorem 2 and section 3.2 (learning to recognize a permutation); Maddison et
    al., "The Concrete Distribution", ICLR 2017.

    >>> layer = KPermutation(32)
    >>> rows_mixed = layer(torch.rand(8, 3, 32, 32), dim=-2)
    >>> layer.permutation().sort().values.equal(torch.arange(32))
    True
    """

    _pair: Tensor

    def __init__(
        self,
        n: int,
        *,
        width: int = 1,
        relaxation: str = "sigmoid",
        temperature: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(n=n, width=width)
        n, width = int(n), int(width)
        if n < 2 or n & (n - 1):
            raise ValueError(f"expected n to be a power of two and at least 2, got {n}")
        if relaxation not in _RELAXATIONS:
            raise ValueError(f"expected relaxation in {_RELAXATIONS}, got {relaxation!r}")
        if not temperature > 0:
            raise ValueError(f"expected temperature > 0, got {temperature}")
        self.n = n
        self.width = width
        self.relaxation = relaxation
        self.temperature = temperature
        shape = (2 * width, n.bit_length() - 1, n // 2)
        self.theta = nn.Parameter(torch.empty(shape, device=device, dtype=real_dtype(dtype)))
        self.reset_parameters()
        self.register_tables(self.theta.device)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start anew near p = 1/2."""
        self.theta.normal_(math.pi / 4 if self.relaxation == "cos2" else 0.0, 0.1)

    def tables(self) -> dict[str, Tensor]:
        """Which pair each index belongs to."""
        return {"_pair": _pair_of_index(self.n)}

    def probabilities(self) -> Tensor:
        """The p of every block, ``(2 * width, log2 n, n / 2)``: how likely it keeps its pair in place."""
        if self.relaxation == "cos2":
            return self.theta.cos().square()
        return torch.sigmoid(self._logits())

    def entropy(self) -> Tensor:
        """Sum over the blocks of the entropy of p, in nats: 0 for a permutation, ``log(2)`` a block at p = 1/2.

        >>> layer = KPermutation(4)
        >>> loss = layer(torch.rand(5, 4)).square().mean() + 0.01 * layer.entropy()
        """
        # Written with the logits so that it stays finite, gradient included, where p rounds to 0 or 1. Beyond 1000
        # there is no entropy in any type, and an infinite distance times no probability would be NaN.
        distance = self._logits().abs().clamp(max=1000)
        return (F.softplus(-distance) + distance * torch.sigmoid(-distance)).sum()

    def forward(self, x: Tensor, dim: int = -1) -> Tensor:
        """Multiply dimension ``dim`` of x, with n entries, by the doubly stochastic matrix of the mean."""
        return along(dim, self.n, x, self._multiplier(self.probabilities()))

    def sample(self, x: Tensor, dim: int = -1, *, hard: bool = True) -> Tensor:
        """Multiply dimension ``dim`` of x by one random draw, shared by the whole of x.

        Args:
            x: any shape with n entries in ``dim``.
            dim: the dimension that is permuted.
            hard: whether to round every block to keeping or swapping. The result then holds the entries of x,
                permuted, and a block keeps its pair with probability p; gradients are those of the draw before
                rounding (straight-through). Otherwise blocks are the binary concrete variables that it is rounded
                from.

        >>> x = torch.arange(4.0)
        >>> KPermutation(4).sample(x).sort().values.equal(x)
        True
        """
        # In half precision a uniform variable would be zero too often.
        logits = self._logits().to(torch.promote_types(self.theta.dtype, torch.float32))
        uniform = torch.rand_like(logits).clamp_min(torch.finfo(logits.dtype).tiny)
        # The difference of two Gumbel variables is logistic.
        drawn = logits + torch.logit(uniform)
        p = torch.sigmoid(drawn / self.temperature if self.relaxation == "cos2" else drawn).to(self.theta.dtype)
        if hard:
            # In this order the sum is exactly 0 or 1.
            p = (_rounded(p) - p).detach() + p
        return along(dim, self.n, x, self._multiplier(p))

    @torch.no_grad()
    def harden(self) -> KMatrix:
        """The permutation matrix with every p rounded, as a `KMatrix` to train on from or to apply."""
        factors = self._factors(_rounded(self.probabilities()))
        factors = factors.to("cpu", torch.promote_types(factors.dtype, torch.float32))
        return KMatrix.from_factors(self.n, factors).to(self.theta.device)

    @torch.no_grad()
    def permutation(self) -> Tensor:
        """The permutation with every p rounded: int64 indices ``(n,)`` of ``y[i] = x[p[i]]``.

        >>> layer = KPermutation(8)
        >>> x = torch.rand(8)
        >>> torch.equal(layer.harden()(x), x[layer.permutation()])
        True
        """
        factors = self._factors(_rounded(self.probabilities())).double()
        index = torch.arange(self.n, dtype=torch.float64, device=factors.device)
        return ops.butterfly_multiply(index, factors).long()

    def to_dense(self) -> Tensor:
        """The doubly stochastic matrix W ``(n, n)`` with ``forward(x) = W @ x``; differentiable."""
        return ops.to_dense(self._factors(self.probabilities()))

    def _logits(self) -> Tensor:
        """log(p / (1 - p)) of every block."""
        if self.relaxation == "cos2":
            return torch.logit(self.theta.cos().square(), eps=torch.finfo(self.theta.dtype).eps)
        return self.theta / self.temperature

    def _factors(self, p: Tensor) -> Tensor:
        """Butterfly coefficients ``(2 * width, log2 n, 2, n)`` of blocks ``[[p, 1 - p], [1 - p, p]]``."""
        pair = self._pair.to(p.device).repeat(self.width, 1, 1)
        keep = p.gather(-1, pair)
        return torch.stack([keep, 1 - keep], dim=2)

    def _multiplier(self, p: Tensor) -> Callable[[Tensor], Tensor]:
        factors = self._factors(p)
        return lambda x: ops.butterfly_multiply(x, factors)

    def extra_repr(self) -> str:
        """Size, width, relaxation and temperature."""
        return f"{self.n}, width={self.width}, relaxation={self.relaxation!r}, temperature={self.temperature}"


def _rounded(p: Tensor) -> Tensor:
    return (p >= 0.5).to(p.dtype)


def _pair_of_index(n: int) -> Tensor:
    """Per factor (B*, then B), stage and index: which pair the index belongs to, ``(2, log2 n, n)``."""
    log_n = n.bit_length() - 1
    index = torch.arange(n)
    # Without its bit at the stride, an index counts the pairs in the order of their first index.
    increasing = torch.stack([index >> (s + 1) << s | index & ((1 << s) - 1) for s in range(log_n)])
    return torch.stack([increasing.flip(0), increasing])
