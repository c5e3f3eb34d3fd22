"""Other structured linear layers, to compare K-matrices with at equal parameters.

All take the arguments of `torch.nn.Linear` and then their own option, and all start with unit gain: entries of W
have mean zero and variance ``1 / in_features`` on average, so that outputs keep the variance of the inputs, as
those of `kaleido_audio.nn.KLinear` do. The parameter formulas are without the bias.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio.nn.linear import KLinear
from kaleido_audio.nn.structured import StructuredLinear, check_positive, real_dtype
from kaleido_audio.tables import ModuleWithTables


class DenseLinear(nn.Linear):
    """`torch.nn.Linear` that starts with unit gain, like its rivals here; ``in_features * out_features`` parameters.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        device: of the parameters.
        dtype: type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: a shape that does not fit, with what was expected.

    >>> DenseLinear(64, 32)(torch.zeros(5, 64)).shape
    torch.Size([5, 32])
    """

    def reset_parameters(self) -> None:
        """Draw the bias as `torch.nn.Linear` does and the weight with variance ``1 / in_features``."""
        super().reset_parameters()
        nn.init.normal_(self.weight, std=self.in_features**-0.5)

    def forward(self, input: Tensor) -> Tensor:
        """``W x + b`` for vectors ``(..., in_features)``."""
        if input.ndim == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"expected x of shape (..., {self.in_features}), got {tuple(input.shape)}")
        return super().forward(input)


class LowRankLinear(StructuredLinear):
    """W = left @ right of rank r: ``r * (in_features + out_features)`` parameters.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        rank: r, at most the shorter side.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    >>> torch.linalg.matrix_rank(LowRankLinear(64, 32, rank=3).weight).item()
    3
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        rank: int = 8,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(f"expected rank between 1 and {min(in_features, out_features)}, got {rank}")
        self.rank = rank
        self.left = _empty((out_features, rank), device, dtype)
        self.right = _empty((rank, in_features), device, dtype)
        self._reset_matrix()

    def _reset_matrix(self) -> None:
        _draw(self.left, self.rank)
        _draw(self.right, self.in_features)

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        return F.linear(F.linear(x, self.right), self.left)

    @property
    def weight(self) -> Tensor:
        """The matrix W ``(out_features, in_features)``; differentiable, computed anew at each access."""
        return self.left @ self.right

    def extra_repr(self) -> str:
        """Sizes and rank."""
        return f"{super().extra_repr()}, rank={self.rank}"


class SparseLinear(ModuleWithTables, StructuredLinear):
    """W with few nonzeros, at random places that do not change: one parameter a nonzero.

    Every row has the same number of nonzeros, or one more. W is made dense to multiply by it: at the densities
    that compete with K-matrices a dense product is faster than a sparse one, so this layer shows what sparsity
    can represent and not what it could save in time. The places are the buffer ``support`` of the state_dict.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        density: share of entries that are nonzero, where ``nonzeros`` is not given.
        nonzeros: how many entries are nonzero.
        seed: of the places; by default they come from PyTorch's global generator.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    >>> (SparseLinear(64, 32, nonzeros=100).weight != 0).sum().item()
    100
    """

    support: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        density: float = 0.1,
        nonzeros: int | None = None,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        entries = in_features * out_features
        if nonzeros is None:
            if not 0 < density <= 1:
                raise ValueError(f"expected density in (0, 1], got {density}")
            nonzeros = max(1, round(density * entries))
        if not 1 <= nonzeros <= entries:
            raise ValueError(f"expected nonzeros between 1 and {entries}, got {nonzeros}")
        self.nonzeros = nonzeros
        self.seed = seed
        self.values = _empty((nonzeros,), device, dtype)
        self.register_indices("support", torch.zeros(nonzeros, device=device), in_features * out_features)
        self._reset_matrix()

    @torch.no_grad()
    def _reset_matrix(self) -> None:
        support = _balanced_support(self.in_features, self.out_features, self.nonzeros, self.seed)
        rows = support // self.in_features
        self.support.copy_(support)
        self.values.normal_().mul_(rows.bincount()[rows].rsqrt().to(self.values))

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        return F.linear(x, self.weight)

    @property
    def weight(self) -> Tensor:
        """The matrix W ``(out_features, in_features)``; differentiable, computed anew at each access."""
        zeros = self.values.new_zeros(self.out_features * self.in_features)
        return zeros.scatter(0, self.indices("support"), self.values).view(self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Sizes and number of nonzeros."""
        return f"{super().extra_repr()}, nonzeros={self.nonzeros}"


class CirculantLinear(StructuredLinear):
    """The corner of a circulant matrix of size n, the longer side: n parameters, its first column.

    W[i, j] = column[(i - j) mod n], applied by real FFTs in O(n log n) operations. Half-precision operands are
    computed in float32, since `torch.fft` has no other way for them.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Cheng et al., "An exploration of parameter redundancy in deep networks with circulant projections",
    ICCV 2015. The matrix is that of `scipy.linalg.circulant`.

    >>> layer = CirculantLinear(3, 3)
    >>> bool(layer.weight[0, 0].isclose(layer.weight[1, 1]))
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.column = _empty((max(in_features, out_features),), device, dtype)
        self._reset_matrix()

    def _reset_matrix(self) -> None:
        _draw(self.column, self.in_features)

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        return _circular_convolution(x, self.column, self.column.shape[0])[..., : self.out_features]


class ToeplitzLinear(StructuredLinear):
    """A Toeplitz matrix: ``in_features + out_features - 1`` parameters, its diagonals.

    W[i, j] = diagonals[i - j + in_features - 1], applied as the corner of a circulant matrix by real FFTs.
    Half-precision operands are computed in float32, since `torch.fft` has no other way for them.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Sindhwani et al., "Structured transforms for small-footprint deep learning", NeurIPS 2015. The matrix
    is that of `scipy.linalg.toeplitz`.

    >>> ToeplitzLinear(5, 3, bias=False).diagonals.shape
    torch.Size([7])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.diagonals = _empty((in_features + out_features - 1,), device, dtype)
        self._reset_matrix()

    def _reset_matrix(self) -> None:
        _draw(self.diagonals, self.in_features)

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        # Outputs from in_features - 1 on are those that do not wrap around.
        size = 1 << (self.diagonals.shape[0] - 1).bit_length()
        return _circular_convolution(x, self.diagonals, size).narrow(-1, self.in_features - 1, self.out_features)


class MonarchLinear(StructuredLinear):
    """Two block-diagonal matrices with a permutation after each: a Monarch matrix, cut to size.

    With b blocks, sides rounded up to multiples of b, p = in_features / b, q = out_features / b and m the smaller
    of p and q: ``b * m * (p + q)`` parameters. The permutations read the b x m and b x q entries column by column,
    so that each block of the second matrix draws on all of the first where m is a multiple of b.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        blocks: b, at most the shorter side.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., "Monarch: Expressive structured matrices for efficient and accurate training", ICML 2022.

    >>> layer = MonarchLinear(16, 16, bias=False, blocks=4)
    >>> layer.first.shape, layer.second.shape
    (torch.Size([4, 4, 4]), torch.Size([4, 4, 4]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        blocks: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        if not 1 <= blocks <= min(in_features, out_features):
            raise ValueError(f"expected blocks between 1 and {min(in_features, out_features)}, got {blocks}")
        self.blocks = blocks
        columns, rows = -(-in_features // blocks), -(-out_features // blocks)
        inner = min(columns, rows)
        self.first = _empty((blocks, inner, columns), device, dtype)
        self.second = _empty((blocks, rows, inner), device, dtype)
        self._reset_matrix()

    def _reset_matrix(self) -> None:
        _draw(self.first, self.in_features / self.blocks)
        _draw(self.second, self.second.shape[2])

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        padding = self.blocks * self.first.shape[2] - self.in_features
        x = F.pad(x, (0, padding)).unflatten(-1, (self.blocks, -1))
        x = torch.einsum("...bi,boi->...ob", x, self.first).flatten(-2).unflatten(-1, (self.blocks, -1))
        x = torch.einsum("...bi,boi->...ob", x, self.second).flatten(-2)
        return x[..., : self.out_features]

    def extra_repr(self) -> str:
        """Sizes and number of blocks."""
        return f"{super().extra_repr()}, blocks={self.blocks}"


class KroneckerLinear(StructuredLinear):
    """W = A_1 kron ... kron A_k: as many parameters as the k small matrices have entries.

    Each side is split into k divisors, as equal as its prime factors allow: 512 = 16 * 32. A prime side does
    not split and leaves a factor as long as itself.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector.
        factors: k, the number of small matrices.
        device: of the parameters.
        dtype: real type of the parameters.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Zhang et al., "Fast orthogonal projection based on Kronecker product", ICCV 2015. The matrix is that of
    `torch.kron`.

    >>> [tuple(matrix.shape) for matrix in KroneckerLinear(512, 512).matrices]
    [(32, 16), (16, 32)]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        factors: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        check_positive(factors=factors)
        # Long rows go with short columns, which makes the matrices smallest.
        rows, self._columns = _balanced_divisors(out_features, factors)[::-1], _balanced_divisors(in_features, factors)
        sides = zip(rows, self._columns, strict=True)
        self.matrices = nn.ParameterList(_empty(side, device, dtype) for side in sides)
        self._reset_matrix()

    def _reset_matrix(self) -> None:
        for matrix in self.matrices:
            _draw(matrix, matrix.shape[1])

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        x = x.unflatten(-1, self._columns)
        for matrix in self.matrices:
            # The side multiplied goes last: after the last matrix, sides are in order again.
            x = F.linear(x.movedim(-len(self._columns), -1), matrix)
        return x.flatten(-len(self._columns))

    def extra_repr(self) -> str:
        """Sizes and number of factors."""
        return f"{super().extra_repr()}, factors={len(self._columns)}"


def match_parameters(kind: type[nn.Module], in_features: int, out_features: int, parameters: int) -> dict[str, int]:
    """The option with which a layer comes closest to a number of parameters, bias not counted.

    Args:
        kind: `KLinear` (its width), `LowRankLinear` (rank), `SparseLinear` (nonzeros), `MonarchLinear` (blocks),
            `KroneckerLinear` (factors), or a layer without such an option, for which the result is empty.
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        parameters: number to come close to.

    Returns:
        keyword arguments for ``kind(in_features, out_features, ...)``.

    Raises:
        ValueError: ``kind`` is none of these layers.

    >>> budget = sum(p.numel() for p in KLinear(512, 512, bias=False).parameters())
    >>> match_parameters(LowRankLinear, 512, 512, budget)
    {'rank': 18}
    """

    def count(**options: int) -> int:
        with torch.device("meta"):
            layer = kind(in_features, out_features, bias=False, **options)
        return sum(p.numel() for p in layer.parameters())

    shorter, longer = sorted((in_features, out_features))
    if kind is KLinear:
        return {"width": max(1, round(parameters / count(width=1)))}
    if kind is LowRankLinear:
        return {"rank": min(max(1, round(parameters / count(rank=1))), shorter)}
    if kind is SparseLinear:
        return {"nonzeros": min(max(1, parameters), in_features * out_features)}
    if kind is MonarchLinear:
        return {"blocks": min(range(1, shorter + 1), key=lambda blocks: abs(count(blocks=blocks) - parameters))}
    if kind is KroneckerLinear:
        most = longer.bit_length()
        return {"factors": min(range(1, most + 1), key=lambda factors: abs(count(factors=factors) - parameters))}
    if kind in (CirculantLinear, DenseLinear, ToeplitzLinear):
        return {}
    raise ValueError(f"expected one of the linear layers of kaleido_audio.nn, got {kind.__name__}")


def _empty(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device=device, dtype=real_dtype(dtype)))


@torch.no_grad()
def _draw(parameter: Tensor, inputs: float) -> None:
    """Independent normal entries with which sums over so many inputs keep their variance."""
    parameter.normal_(std=1 / math.sqrt(inputs))


def _circular_convolution(x: Tensor, kernel: Tensor, size: int) -> Tensor:
    """Circular convolution of length ``size``, of x ``(..., m)`` and a kernel ``(k,)`` padded with zeros to it."""
    if x.numel() == 0:  # which not every FFT library behind torch.fft takes
        return F.pad(x, (0, size - x.shape[-1])) * kernel[0]
    spectrum = torch.fft.rfft(_in_single(x), n=size) * torch.fft.rfft(_in_single(kernel), n=size)
    return torch.fft.irfft(spectrum, n=size).to(x.dtype)


def _in_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _balanced_support(columns: int, rows: int, nonzeros: int, seed: int | None) -> Tensor:
    """Flat indices ``(nonzeros,)`` of random entries, equally many a row or one more.

    Always computed on the processor, so that a seed means the same places everywhere.
    """
    generator = None if seed is None else torch.Generator("cpu").manual_seed(seed)
    # In one type: numbers of another default type would be others.
    order = torch.rand(rows, columns, generator=generator, device="cpu", dtype=torch.float32).argsort(dim=1)
    row_lengths = torch.full((rows, 1), nonzeros // rows, device="cpu")
    row_lengths[torch.randperm(rows, generator=generator, device="cpu")[: nonzeros % rows]] += 1
    chosen = torch.arange(columns, device="cpu") < row_lengths
    flat = order + columns * torch.arange(rows, device="cpu").unsqueeze(1)
    return flat[chosen].sort().values


def _balanced_divisors(n: int, count: int) -> list[int]:
    """Divisors of n with product n, in increasing order, each in turn the nearest to the root of what is left.

    >>> _balanced_divisors(512, 2), _balanced_divisors(60, 3)
    ([16, 32], [3, 4, 5])
    """
    if count == 1:
        return [n]
    root: float = n ** (1 / count)
    # Rounded, so that of two divisors equally near the smaller is taken.
    divisor = min((d for d in range(1, n + 1) if n % d == 0), key=lambda d: round(abs(math.log(d / root)), 9))
    return sorted([divisor, *_balanced_divisors(n // divisor, count - 1)])
