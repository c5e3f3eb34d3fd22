"""K-matrices and the Hadamard transform as layers: KLinear, KConv1x1, Hadamard."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kaleido_audio import exact, ops
from kaleido_audio.kmatrix import Init, KMatrix, moved
from kaleido_audio.nn.structured import StructuredLinear, along, check_positive, real_dtype
from kaleido_audio.tables import ModuleWithTables

_AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


class KLinear(StructuredLinear):
    """A linear layer with a K-matrix: stands for `torch.nn.Linear` in O(N log N) parameters and operations.

    The matrix is the corner of ``out_features`` rows and ``in_features`` columns of a product of butterfly
    matrices of size N, the next power of two of ``expansion`` times the longer side: ``4 * width * N * log2 N``
    parameters, in the submodule ``kmatrix``.

    A new layer gives outputs of the variance of its inputs, where `torch.nn.Linear` gives a third of it; with
    ``constraint="orthogonal"`` of ``in_features / N`` of it.

    Args:
        in_features: size of the input vectors.
        out_features: size of the output vectors.
        bias: whether to add a vector, drawn as in `torch.nn.Linear`.
        width: number of BB* products.
        expansion: e of (BB*)^w_e; the corner of a larger matrix can represent more maps.
        init: ``"orthogonal"``, ``"identity"``, ``"normal"`` or a `KMatrix`, as `KMatrix` takes it.
        constraint: None, ``"orthogonal"`` or ``"odo"``, as `KMatrix` takes it.
        tied: whether the blocks of a stage share their coefficients, as `KMatrix` takes it.
        device: of the parameters.
        dtype: real type of the parameters, `torch.get_default_dtype()` by default.

    Shape:
        ``forward(x)``: ``(..., in_features)`` to ``(..., out_features)``.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, section 3.

    >>> layer = KLinear(512, 512)
    >>> layer(torch.zeros(8, 3, 512)).shape
    torch.Size([8, 3, 512])
    >>> sum(p.numel() for p in layer.parameters()), sum(p.numel() for p in nn.Linear(512, 512).parameters())
    (18944, 262656)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        width: int = 1,
        expansion: int = 1,
        init: Init = "orthogonal",
        constraint: str | None = None,
        tied: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        dtype = real_dtype(dtype)
        kmatrix = KMatrix(
            in_features,
            out_features=out_features,
            width=width,
            expansion=expansion,
            dtype=dtype if dtype == torch.float64 else torch.float32,
            init=init,
            constraint=constraint,
            tied=tied,
        )
        self.kmatrix = moved(kmatrix, device, dtype)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the constructor did.

        Raises:
            ValueError: the layer was made from a given K-matrix. Nothing is drawn then.
        """
        if self.kmatrix.init is None:
            raise ValueError("this layer was made from a given K-matrix, which it does not keep: make it anew")
        super().reset_parameters()

    def _reset_matrix(self) -> None:
        self.kmatrix.reset_parameters()

    def multiply(self, x: Tensor) -> Tensor:
        """The product ``W x`` for vectors ``(..., in_features)``, without the bias."""
        return self.kmatrix(x)

    @property
    def weight(self) -> Tensor:
        """The matrix W ``(out_features, in_features)``; differentiable, computed anew at each access.

        It costs O(N^2) operations a butterfly matrix and a dense product for each of them after the first, and
        is no parameter: writing into it changes nothing. Code that multiplies by ``layer.weight`` itself, like
        `torch.nn.MultiheadAttention`, is right with it but slower than with a dense layer.
        """
        return self.kmatrix.to_dense()


class KConv1x1(nn.Module):
    """A convolution of kernel size 1 whose channel mixing is a K-matrix: stands for ``nn.Conv2d(c, d, 1)``.

    The operator runs over the last dimension, and PyTorch's channels_last memory format keeps the channels
    there: input in that format is read without a copy, other input is transposed once. The output always is in
    channels_last format, in which later convolutions, norms and activations go on.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        bias: whether to add a vector, drawn as in `torch.nn.Conv2d`.
        spatial_dims: 1, 2 or 3, for `torch.nn.Conv1d`, `torch.nn.Conv2d` or `torch.nn.Conv3d`.
        width, expansion, init, constraint, tied, device, dtype: as in `KLinear`.

    Shape:
        ``forward(x)``: ``(N, in_channels, ...)`` to ``(N, out_channels, ...)``, with ``spatial_dims`` dimensions
        after the channels; N may be missing.

    Raises:
        ValueError: an option or a shape that does not fit, with what was expected.

    Source: Dao et al., ICLR 2020, section 3.1 (in the place of channel shuffles).

    >>> KConv1x1(58, 116)(torch.zeros(2, 58, 7, 7)).shape
    torch.Size([2, 116, 7, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        *,
        spatial_dims: int = 2,
        width: int = 1,
        expansion: int = 1,
        init: Init = "orthogonal",
        constraint: str | None = None,
        tied: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in _AXES:
            raise ValueError(f"expected spatial_dims 1, 2 or 3, got {spatial_dims}")
        if not isinstance(bias, bool):  # the third argument of a convolution is its kernel size
            raise ValueError(f"expected bias to be True or False, got {bias!r}")
        check_positive(in_channels=in_channels, out_channels=out_channels)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.spatial_dims = spatial_dims
        self.linear = KLinear(
            in_channels,
            out_channels,
            bias,
            width=width,
            expansion=expansion,
            init=init,
            constraint=constraint,
            tied=tied,
            device=device,
            dtype=dtype,
        )

    @property
    def weight(self) -> Tensor:
        """The dense kernel ``(out_channels, in_channels, 1, ...)``: `KLinear.weight`, shaped as a convolution's."""
        weight = self.linear.weight
        return weight.reshape(*weight.shape, *(1,) * self.spatial_dims)

    @property
    def bias(self) -> nn.Parameter | None:
        """The vector added to the channels, or None."""
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of ``(N, in_channels, ...)`` or ``(in_channels, ...)``."""
        channels = -1 - self.spatial_dims
        if x.ndim not in (-channels, 1 - channels) or x.shape[channels] != self.in_channels:
            sides = f"{self.in_channels}, {_AXES[self.spatial_dims]}"
            raise ValueError(f"expected x of shape (N, {sides}) or ({sides}), got {tuple(x.shape)}")
        return self.linear(x.movedim(channels, -1)).movedim(-1, channels)

    def extra_repr(self) -> str:
        """Number of spatial dimensions; the rest is said by the layer inside."""
        return f"spatial_dims={self.spatial_dims}"


class Hadamard(ModuleWithTables):
    """The Hadamard transform divided by sqrt(n): mixes all entries of a dimension, without parameters.

    Orthogonal and its own inverse where n is a power of two. For another n, the upper-left n x n corner of the
    transform of the next power of two N, so that outputs have ``n / N`` of the variance of the inputs.

    Args:
        n: size of the dimension.
        dim: the dimension that is transformed; 1 to mix the channels of ``(N, C, ...)``.
        device: of the coefficients, which are no part of the state_dict.
        dtype: real type of the coefficients, `torch.get_default_dtype()` by default.

    Shape:
        ``forward(x)``: any shape with n entries in ``dim``; the result has the same shape.

    Raises:
        ValueError: a size or a shape that does not fit, with what was expected.

    Source: the matrix of `scipy.linalg.hadamard`, divided by sqrt(N).

    >>> Hadamard(4)(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    tensor([1., 0., 0., 1.])
    """

    factors: Tensor

    def __init__(
        self,
        n: int,
        *,
        dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(n=n)
        self.n = int(n)
        self.dim = dim
        self.register_tables(device)
        self.factors = self.factors.to(real_dtype(dtype))

    def tables(self) -> dict[str, Tensor]:
        """The coefficients of the transform, in float64."""
        size = 1 << (self.n - 1).bit_length()
        # One B* is the whole transform; the other factor of the exact K-matrix is the identity.
        factors = exact.hadamard(size, dtype=torch.float64).factors.detach()[:1].clone()
        if size > 1:
            factors[:, 0] /= size**0.5
        return {"factors": factors}

    def forward(self, x: Tensor) -> Tensor:
        """Transform the dimension ``dim`` of x."""
        return along(self.dim, self.n, x, self._transform)

    def _transform(self, x: Tensor) -> Tensor:
        return ops.butterfly_multiply(x, self.factors, out_features=self.n)

    def extra_repr(self) -> str:
        """Size and dimension."""
        return f"{self.n}, dim={self.dim}"
