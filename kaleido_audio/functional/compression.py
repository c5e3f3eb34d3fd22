"""Compression of spectrograms: logarithms and per-channel energy normalisation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Frames that one triangular matrix of `pcen` smooths at once.
_SMOOTHING_BLOCK = 32


def log_compression(x: Tensor, eps: float | Tensor = 1e-6) -> Tensor:
    """Natural logarithm ``log(x + eps)``: finite, and with a finite gradient, on silence.

    Args:
        x: ``(..., n_channels, frames)``, not negative.
        eps: a number or one per channel, ``(n_channels,)``, positive. The default is a little above what the
            rounding of 16-bit audio leaves in a power mel band of [-1, 1] audio.

    >>> log_compression(torch.zeros(1, 1), eps=1.0)
    tensor([[0.]])
    """
    return _with_offset(x, eps).log()


def log10_compression(x: Tensor, eps: float | Tensor = 1e-6) -> Tensor:
    """Decimal logarithm ``log10(x + eps)``.

    Args:
        x, eps: as in `log_compression`.

    >>> log10_compression(torch.full((1, 1), 99.0), eps=1.0)
    tensor([[2.]])
    """
    return _with_offset(x, eps).log10()


def db_compression(x: Tensor, power: float = 2.0, eps: float | Tensor = 1e-6) -> Tensor:
    """Decibels ``20 / power * log10(x + eps)``, without a limit of the range below the largest value.

    Args:
        x, eps: as in `log_compression`.
        power: exponent of the magnitude in x: 2 for a power spectrogram, 1 for a magnitude spectrogram.

    >>> db_compression(torch.full((1, 1), 99.0), eps=1.0), db_compression(torch.full((1, 1), 99.0), 1.0, 1.0)
    (tensor([[20.]]), tensor([[40.]]))
    """
    return (20.0 / power) * log10_compression(x, eps)


def pcen_smoothing(time_constant: float, sample_rate: int, hop_length: int) -> float:
    """Smoothing coefficient of `pcen` for a time constant, as in `librosa.pcen`.

    Args:
        time_constant: in seconds.
        sample_rate: of the audio, in Hz.
        hop_length: samples between frames.

    Source: Lostanlen et al., "Per-Channel Energy Normalization: Why and How", 2019.

    >>> round(pcen_smoothing(0.4, 16000, 160), 4)
    0.0247
    """
    if time_constant <= 0:
        raise ValueError(f"expected time_constant > 0 seconds, got {time_constant}")
    frames = time_constant * sample_rate / hop_length
    return 2 / (1 + math.sqrt(1 + 4 * frames**2))


def pcen(
    x: Tensor,
    smoothing: float | Tensor,
    *,
    gain: float | Tensor = 0.98,
    bias: float | Tensor = 2.0,
    power: float | Tensor = 0.5,
    eps: float = 1e-6,
    initial: float | Tensor | None = None,
) -> Tensor:
    """Per-channel energy normalisation: automatic gain control by a smoothed energy, then a root.

    ``(x / (eps + m) ** gain + bias) ** power - bias ** power`` with the first-order low-pass
    ``m[t] = (1 - smoothing) * m[t - 1] + smoothing * x[t]``, computed for blocks of frames by a triangular
    matrix.

    Args:
        x: spectrogram ``(..., n_channels, frames)``, not negative.
        smoothing: in (0, 1], e.g. of `pcen_smoothing`. This and the three next ones are a number or one per
            channel, ``(n_channels,)``, and may need a gradient.
        gain: exponent of the gain control, positive.
        bias: offset, positive.
        power: exponent of the compression, positive.
        eps: positive number below any level of interest.
        initial: m before the first frame, a number or ``(..., n_channels)``. By default the first frame,
            which does not depend on the scale of the audio; `librosa.pcen` starts at 1.

    Shape:
        result ``(..., n_channels, frames)``.

    Raises:
        ValueError: shapes that do not fit or numbers out of range.

    Source: Wang et al., "Trainable frontend for robust and far-field keyword spotting", ICASSP 2017,
    equation 1.

    >>> steady = torch.full((1, 50), 3.0)
    >>> pcen(steady, 0.1, gain=1.0, bias=1.0, power=0.5, eps=1e-9)[0, -1]  # sqrt(3 / 3 + 1) - 1
    tensor(0.4142)
    """
    if x.ndim < 2:
        raise ValueError(f"expected x of shape (..., n_channels, frames), got {tuple(x.shape)}")
    if not isinstance(smoothing, Tensor) and not 0 < smoothing <= 1:
        raise ValueError(f"expected smoothing in (0, 1], got {smoothing}")
    level = pcen_level(x, smoothing, initial=initial)
    return pcen_of_level(x, level, gain=gain, bias=bias, power=power, eps=eps)


def pcen_of_level(
    x: Tensor,
    level: Tensor,
    *,
    gain: float | Tensor = 0.98,
    bias: float | Tensor = 2.0,
    power: float | Tensor = 0.5,
    eps: float = 1e-6,
) -> Tensor:
    """`pcen` where the smoothed energy is known already.

    Args:
        x, gain, bias, power, eps: as in `pcen`.
        level: m, of `pcen_level`, of the shape of x.

    Shape:
        result ``(..., n_channels, frames)``.

    >>> pcen_of_level(torch.tensor([[3.0]]), torch.tensor([[3.0]]), gain=1.0, bias=1.0, eps=1e-9)
    tensor([[0.4142]])
    """
    for name, value in (("gain", gain), ("bias", bias), ("power", power), ("eps", eps)):
        if not isinstance(value, Tensor) and not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")
    gain, bias, power = (_per_channel(value, x) for value in (gain, bias, power))
    # In logarithms: (eps + m) ** -gain is exact for m far below and far above eps.
    normalised = x * torch.exp(-gain * (math.log(eps) + torch.log1p(level / eps)))
    return bias**power * torch.expm1(power * torch.log1p(normalised / bias))


def pcen_level(x: Tensor, smoothing: float | Tensor, *, initial: float | Tensor | None = None) -> Tensor:
    """The smoothed energy m of `pcen`: its last frame is the `initial` of what follows.

    Args:
        x, smoothing, initial: as in `pcen`.

    Shape:
        result ``(..., n_channels, frames)``.

    >>> pcen_level(torch.tensor([[0.0, 4.0]]), 0.25)
    tensor([[0., 1.]])
    """
    smoothing = _per_channel(smoothing, x)
    start = x[..., :1] if initial is None else torch.as_tensor(initial, dtype=x.dtype, device=x.device)
    if initial is not None and start.ndim:
        start = start.unsqueeze(-1)
    return _first_order(smoothing * x, 1 - smoothing, start)


def _first_order(u: Tensor, decay: Tensor, initial: Tensor) -> Tensor:
    """``y[t] = decay * y[t - 1] + u[t]`` over the last dimension, with ``y[-1] = initial``.

    Within a block of frames the recursion is a triangular matrix; from block to block it is a recursion again, and so
    from block of blocks to block of blocks: a fixed number of steps for any number of frames, as `torch.export` wants.

    Shape:
        u ``(..., channels, frames)``, decay ``()`` or ``(channels, 1)``, initial broadcastable to
        ``(..., channels, 1)``.
    """
    # A block alone is one product; graphs are made for any number of frames.
    short = not torch.compiler.is_compiling() and u.shape[-1] <= _SMOOTHING_BLOCK
    sizes = () if short else (_SMOOTHING_BLOCK, _SMOOTHING_BLOCK)
    if _is_known_finite(u):
        return _by_blocks(u, decay, initial, sizes)
    # A product with zeros would carry what is not finite to the frames before it too.
    spoiled = (~u.isfinite()).cumsum(-1) > 0
    return _by_blocks(u.nan_to_num(0.0, 0.0, 0.0), decay, initial, sizes).masked_fill(spoiled, torch.nan)


def _is_known_finite(u: Tensor) -> bool:
    """Whether all is finite, asked only where the answer costs less than doing without."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active()
    return type(u) is Tensor and u.is_cpu and not traced and math.isfinite(u.detach().sum().item())


def _by_blocks(u: Tensor, decay: Tensor, initial: Tensor, sizes: tuple[int, ...]) -> Tensor:
    if not sizes:
        return _by_matrix(u, decay, u.shape[-1]) + decay ** _steps(u, u.shape[-1]) * initial
    frames, size = u.shape[-1], sizes[0]
    n_blocks = (frames + size - 1) // size + 1  # two at least: compilers make programs of their own for a size of one
    blocks = F.pad(u, (0, n_blocks * size - frames)).unflatten(-1, (n_blocks, size))
    within = decay.unsqueeze(-1) if decay.ndim else decay
    alone = _by_matrix(blocks, within, size)
    ends = _by_blocks(alone[..., -1], decay**size, initial, sizes[1:])
    before = torch.cat([initial.expand(*u.shape[:-1], 1), ends], dim=-1)[..., :n_blocks]
    result = alone + within ** _steps(u, size) * before.unsqueeze(-1)
    return result.flatten(-2)[..., :frames]


def _by_matrix(u: Tensor, decay: Tensor, size: int) -> Tensor:
    """The recursion from zero, over a last dimension of that size."""
    step = torch.arange(size, device=u.device)
    lag = (step.unsqueeze(1) - step).clamp(min=0)
    matrix = torch.tril((decay.unsqueeze(-1) if decay.ndim else decay) ** lag)
    return (u.unsqueeze(-2) @ matrix.mT).squeeze(-2)


def _steps(u: Tensor, size: int) -> Tensor:
    return torch.arange(1, size + 1, device=u.device)


def _with_offset(x: Tensor, eps: float | Tensor) -> Tensor:
    """``x + eps`` for a number, of which no tensor is made, or one value per channel."""
    return x + (_per_channel(eps, x) if isinstance(eps, Tensor) else eps)


def _per_channel(value: float | Tensor, x: Tensor) -> Tensor:
    """A number, or one per channel of x ``(..., channels, frames)``, ready to be broadcast with x."""
    value = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if value.ndim > 1 or (value.ndim == 1 and (x.ndim < 2 or value.shape[0] not in (1, x.shape[-2]))):
        raise ValueError(
            f"expected a number or one value per channel of features {tuple(x.shape)}, got shape {tuple(value.shape)}"
        )
    return value.unsqueeze(-1) if value.ndim else value
