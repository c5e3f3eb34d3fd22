"""SincNet: a convolutional front end on the raw waveform that starts with learnable band-pass filters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kaleido_audio.functional import (
    check_at_least,
    check_choice,
    check_lengths,
    hz_to_mel,
    mask_frames,
    mel_to_hz,
    widened,
)

CONTEXTS = ("window", "utterance")
_POOL_SIZES = {"window": (3, 3, 3, 2), "utterance": (5, 4, 4, 2)}
_MLP = {"window": (1024,) * 5, "utterance": ()}

# Variance below which a layer norm stops amplifying: that of a waveform at -80 dBFS.
_EPS = 1e-8

# Rows of patches in one matrix product on a CPU: larger results fall out of its caches, at half the speed.
_CPU_ROWS = 8192


def sinc_filters(low: Tensor, high: Tensor, kernel_size: int) -> Tensor:
    """Band-pass filters: differences of two ideal low-pass filters, scaled to 1 at the centre and windowed.

    The difference is 2 high sinc(2 high n) - 2 low sinc(2 low n), its maximum 2 (high - low). Their ratio is
    sinc((high - low) n) cos(pi (high + low) n), computed here because it has no cancellation and no division
    by n. The window is Hamming's.

    Args:
        low: ``(filters,)``, lower edges, as fractions of the sample rate.
        high: ``(filters,)``, upper edges, likewise; above ``low``.
        kernel_size: number of taps, odd.

    Returns:
        ``(filters, kernel_size)``, symmetric.

    Raises:
        ValueError: an even kernel_size.

    Source: Ravanelli and Bengio, "Speaker recognition from raw waveform with SincNet", SLT 2018, section 2.

    >>> sinc_filters(torch.tensor([0.1]), torch.tensor([0.3]), 5).mul(100).round()
    tensor([[ -5.,  16., 100.,  16.,  -5.]])
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"a symmetric filter needs an odd kernel_size, got {kernel_size}")
    half = kernel_size // 2
    n = torch.arange(1, half + 1, dtype=low.dtype, device=low.device)
    window = torch.hamming_window(kernel_size, periodic=False, dtype=low.dtype, device=low.device)[half + 1 :]
    low, high = low[:, None], high[:, None]
    # One side only: at n = 0, where the filter is 1, torch.sinc has no second derivative.
    side = torch.sinc((high - low) * n) * torch.cos(math.pi * (high + low) * n) * window
    return torch.cat([side.flip(-1), torch.ones_like(low), side], dim=-1)


class SincNet(nn.Module):
    """The raw-waveform network of the SincNet recipe for TIMIT, as a front end.

    Four layers, each convolution > max-pool > layer norm > ReLU > dropout. The first convolves with band-pass
    filters, of which only the edges are learned: parameters ``low_`` and ``band_``, fractions of the sample
    rate (in Hz, usual learning rates would hardly move them), give the edges ``low = min_low_hz + |low_|`` and
    ``high = low + min_band_hz + |band_|``.

    There are two ways to run them:

    - ``context="window"``, the published network: every frame has a window of its own, ``win_length`` samples.
      Layer norms run over time, separately in each channel, and over the samples of the window itself. What the
      last layer gives is flattened and goes through fully connected layers with batch norm. Windows are
      convolved ``chunk_frames`` at a time, and again in the backward pass, so that memory stays bounded.
    - ``context="utterance"``: the same layers run once over the utterance, so that neighbouring frames share
      their work: some 25 times less. Convolutions keep the number of time steps, the pools together divide it
      by ``hop_length``, and layer norms run over the channels of each time step.

    Args:
        sample_rate: of the audio, in Hz.
        hop_length: samples between neighbouring frames.
        context: ``"window"`` or ``"utterance"``.
        n_filters: channels of each layer.
        kernel_sizes: taps of each convolution; the first is odd.
        pool_sizes: of each max-pool; by default (3, 3, 3, 2) in windows and (5, 4, 4, 2) over utterances, where
            their product is ``hop_length``.
        mlp: sizes of the fully connected layers, () for none; by default five of 1024 after windows, else none.
        dropout: probability, after every layer.
        win_length: samples of a window; 200 ms by default. Utterances have no windows.
        f_min, f_max: in Hz; mel-spaced points between them are where bands start, each from ``min_low_hz`` above
            one point to ``min_low_hz + min_band_hz`` above the next; by default the last ends at half the
            sample rate.
        min_low_hz, min_band_hz: smallest lower edge and bandwidth, in Hz.
        chunk_frames: windows convolved at a time.

    Shape:
        ``forward(waveform)``: ``(..., time)`` to ``(..., n_features, frames)``, where frame t is centred on
        sample ``t * hop_length``, frames = time // hop_length + 1, and the waveform counts as zero outside;
        ``forward(waveform, lengths)``: ``(batch, time)`` and ``(batch,)`` to the features and the frame
        counts ``(batch,)``. An item of a padded batch gives what it gives alone, then zeros (in training, as far
        as dropout and batch norm allow).

    Attributes:
        n_features: size of the last fully connected layer; without any, channels of the last layer (in windows,
            times its time steps).

    Raises:
        ValueError: an option, shape or type that does not fit, with what was expected.

    Source: Ravanelli and Bengio, SLT 2018; layers and sizes as in the TIMIT recipe of Ravanelli, Parcollet and
    Bengio, "The PyTorch-Kaldi speech recognition toolkit", ICASSP 2019.

    >>> front_end = SincNet(context="utterance")
    >>> features, counts = front_end(torch.randn(2, 16000), torch.tensor([16000, 8000]))
    >>> features.shape, counts
    (torch.Size([2, 60, 101]), tensor([101,  51]))
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        hop_length: int = 160,
        *,
        context: str = "window",
        n_filters: Sequence[int] = (128, 60, 60, 60),
        kernel_sizes: Sequence[int] = (129, 5, 5, 3),
        pool_sizes: Sequence[int] | None = None,
        mlp: Sequence[int] | None = None,
        dropout: float = 0.15,
        win_length: int | None = None,
        f_min: float = 30.0,
        f_max: float | None = None,
        min_low_hz: float = 50.0,
        min_band_hz: float = 50.0,
        chunk_frames: int = 128,
    ) -> None:
        super().__init__()
        check_choice("context", context, CONTEXTS)
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.context = context
        self.n_filters = tuple(n_filters)
        self.kernel_sizes = tuple(kernel_sizes)
        self.pool_sizes = tuple(_POOL_SIZES[context] if pool_sizes is None else pool_sizes)
        self.win_length = round(0.2 * sample_rate) if win_length is None else win_length
        self.min_low_hz = min_low_hz
        self.min_band_hz = min_band_hz
        self.chunk_frames = chunk_frames
        mlp = _MLP[context] if mlp is None else tuple(mlp)
        self._check_sizes(mlp)

        points = self._mel_points(f_min, f_max) / sample_rate
        self.low_ = nn.Parameter(points[:-1].to(torch.get_default_dtype()))
        self.band_ = nn.Parameter(points.diff().to(torch.get_default_dtype()))
        channels = zip(self.n_filters[:-1], self.n_filters[1:], self.kernel_sizes[1:], strict=True)
        self.convolutions = nn.ModuleList(nn.Conv1d(*sizes) for sizes in channels)
        self.dropout = nn.Dropout(dropout)
        n_features = self.n_filters[-1]
        if context == "window":
            steps = self._window_steps()
            n_features *= steps[-1]
            self.input_norm = nn.LayerNorm(self.win_length, eps=_EPS)
            self.norms = nn.ModuleList(_TimeNorm(*sizes) for sizes in zip(self.n_filters, steps, strict=True))
        else:
            self.norms = nn.ModuleList(nn.LayerNorm(n, eps=_EPS) for n in self.n_filters)
        self.mlp = nn.Sequential()
        for size in mlp:
            self.mlp.append(nn.Linear(n_features, size, bias=False))  # the batch norm has one
            self.mlp.append(nn.BatchNorm1d(size, momentum=0.05))
            self.mlp.append(nn.ReLU())
            self.mlp.append(nn.Dropout(dropout))
            n_features = size
        self.n_features = n_features

    def band_edges(self) -> Tensor:
        """Lower and upper edge of each filter, ``(n_filters[0], 2)``, in Hz.

        >>> SincNet(context="utterance", n_filters=(4, 8, 8, 8)).band_edges().detach().round()
        tensor([[  80.,  752.],
                [ 702., 1906.],
                [1856., 4042.],
                [3992., 8000.]])
        """
        return torch.stack(self._edges(), dim=-1) * self.sample_rate

    def filters(self) -> Tensor:
        """Impulse responses of the first layer, ``(n_filters[0], kernel_sizes[0])``."""
        return sinc_filters(*self._edges(), self.kernel_sizes[0])

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Features, and with ``lengths`` also frame counts: see the class."""
        if self.low_.dtype in (torch.float32, torch.float64):  # a network may be narrower, unlike a spectrogram
            waveform = widened(waveform, self.low_.dtype)
        if waveform.ndim == 0 or waveform.shape[-1] == 0:
            raise ValueError(f"expected a waveform (..., time) of at least one sample, got {tuple(waveform.shape)}")
        batch_shape, time = waveform.shape[:-1], waveform.shape[-1]
        n_frames = time // self.hop_length + 1
        counts = None
        if lengths is not None:
            check_lengths(waveform, lengths)
            counts = lengths.long() // self.hop_length + 1
            waveform = mask_frames(waveform, lengths)
        convolve = self._over_windows if self.context == "window" else self._over_utterances
        features = convolve(waveform.reshape(-1, time), n_frames, counts)
        features = features.reshape(*batch_shape, self.n_features, n_frames)
        return features if counts is None else (features, counts)

    def extra_repr(self) -> str:
        """Sizes of the layers."""
        return (
            f"sample_rate={self.sample_rate}, hop_length={self.hop_length}, context={self.context!r}, "
            f"n_filters={self.n_filters}, kernel_sizes={self.kernel_sizes}, pool_sizes={self.pool_sizes}"
        )

    def _check_sizes(self, mlp: tuple[int, ...]) -> None:
        for name in ("sample_rate", "hop_length", "win_length", "chunk_frames"):
            check_at_least(name, getattr(self, name), 1)
        layers = (self.n_filters, self.kernel_sizes, self.pool_sizes)
        if not self.n_filters or len({len(sizes) for sizes in layers}) > 1:
            raise ValueError(
                f"expected one n_filters, kernel_sizes and pool_sizes for each layer, got {self.n_filters}, "
                f"{self.kernel_sizes} and {self.pool_sizes}"
            )
        for name, sizes in zip(("n_filters", "kernel_sizes", "pool_sizes", "mlp"), (*layers, mlp), strict=True):
            for size in sizes:
                check_at_least(f"each of {name}", size, 1)
        if self.kernel_sizes[0] % 2 == 0:
            raise ValueError(f"symmetric filters need an odd kernel_sizes[0], got {self.kernel_sizes[0]}")
        if min(self.min_low_hz, self.min_band_hz) < 0:
            raise ValueError(f"expected min_low_hz and min_band_hz >= 0, got {self.min_low_hz} and {self.min_band_hz}")
        if self.context == "utterance" and math.prod(self.pool_sizes) != self.hop_length:
            raise ValueError(
                f"over utterances the product of pool_sizes is hop_length = {self.hop_length}, got "
                f"{' * '.join(map(str, self.pool_sizes))} = {math.prod(self.pool_sizes)}"
            )

    def _mel_points(self, f_min: float, f_max: float | None) -> Tensor:
        nyquist = self.sample_rate / 2
        if f_max is None:
            f_max = nyquist - self.min_low_hz - self.min_band_hz
        if not 0.0 <= f_min < f_max <= nyquist:
            raise ValueError(f"expected 0 <= f_min < f_max <= {nyquist:g} Hz, got {f_min} and {f_max}")
        low, high = hz_to_mel(torch.tensor([f_min, f_max], dtype=torch.float64))
        return mel_to_hz(torch.linspace(low, high, self.n_filters[0] + 1, dtype=torch.float64))

    def _window_steps(self) -> list[int]:
        """Time steps after each layer within a window."""
        steps = [self.win_length]
        for kernel_size, pool_size in zip(self.kernel_sizes, self.pool_sizes, strict=True):
            steps.append((steps[-1] - kernel_size + 1) // pool_size)
        if steps[-1] < 1:
            raise ValueError(
                f"win_length = {self.win_length} is too short for kernel_sizes {self.kernel_sizes} and "
                f"pool_sizes {self.pool_sizes}: they leave {steps[1:]} time steps"
            )
        return steps[1:]

    def _edges(self) -> tuple[Tensor, Tensor]:
        low = self.low_.abs() + self.min_low_hz / self.sample_rate
        high = low + self.band_.abs() + self.min_band_hz / self.sample_rate
        return low, high

    def _over_windows(self, waveform: Tensor, n_frames: int, counts: Tensor | None) -> Tensor:
        """``(batch, time)`` to ``(batch, n_features, n_frames)``."""
        left = self.win_length // 2
        padded = F.pad(waveform, (left, self.win_length - left))
        windows = padded.unfold(-1, self.win_length, self.hop_length)
        filters = self.filters()

        def convolve(item: Tensor, frame: Tensor) -> Tensor:
            x = _conv_max_pool(self.input_norm(windows[item, frame]), filters, self.pool_sizes[0])
            x = self.dropout(F.relu(self.norms[0](x)))
            for conv, pool_size, norm in self._later_layers():
                x = self.dropout(F.relu(norm(F.max_pool1d(conv(x), pool_size))))
            return x.flatten(1)

        # Frames after an item's end are left out: they would cost as much as others and enter batch norm.
        exists = _existing_frames(waveform, n_frames, counts)
        item, frame = exists.nonzero(as_tuple=True)
        chunks = zip(item.split(self.chunk_frames), frame.split(self.chunk_frames), strict=True)
        if torch.is_grad_enabled() and len(item) > self.chunk_frames:
            flat = [checkpoint(convolve, *chunk, use_reentrant=False) for chunk in chunks]
        else:
            flat = [convolve(*chunk) for chunk in chunks]
        return _at_frames(self.mlp(torch.cat(flat)), exists)

    def _over_utterances(self, waveform: Tensor, n_frames: int, counts: Tensor | None) -> Tensor:
        """``(batch, time)`` to ``(batch, n_features, n_frames)``."""
        # The pools of a frame cover hop_length samples; half of them before the frame's own centres it there.
        lead = self.hop_length // 2
        reach = self.kernel_sizes[0] // 2
        rest = n_frames * self.hop_length - lead - waveform.shape[-1]
        x = _conv_max_pool(F.pad(waveform, (lead + reach, rest + reach)), self.filters(), self.pool_sizes[0])
        x = self.dropout(F.relu(_channel_norm(self.norms[0], x)))
        for conv, pool_size, norm in self._later_layers():
            # After its end an item goes on with zeros, as it does alone.
            if counts is not None:
                x = mask_frames(x, counts * (x.shape[-1] // n_frames))
            taps = conv.kernel_size[0]
            x = F.max_pool1d(conv(F.pad(x, (taps // 2, (taps - 1) // 2))), pool_size)
            x = self.dropout(F.relu(_channel_norm(norm, x)))
        if len(self.mlp):
            exists = _existing_frames(waveform, n_frames, counts)
            return _at_frames(self.mlp(x.transpose(1, 2)[exists]), exists)
        return x if counts is None else mask_frames(x, counts)

    def _later_layers(self) -> list[tuple[nn.Conv1d, int, nn.Module]]:
        layers = zip(self.convolutions, self.pool_sizes[1:], list(self.norms)[1:], strict=True)
        return list(layers)  # type: ignore[arg-type]


class _TimeNorm(nn.Module):
    """Layer norm over the time steps of each channel, then a factor and a term at every channel and step."""

    def __init__(self, channels: int, steps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, steps))
        self.bias = nn.Parameter(torch.zeros(channels, steps))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=_EPS) * self.weight + self.bias


def _channel_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """A layer norm over the channels of ``x (batch, channels, steps)``."""
    return norm(x.transpose(1, 2)).transpose(1, 2)


def _conv_max_pool(waveform: Tensor, filters: Tensor, pool_size: int) -> Tensor:
    """``max_pool1d(conv1d(waveform, filters), pool_size)``: ``(batch, time)`` to ``(batch, filters, steps)``.

    As matrix products: a patch holds the samples that one pool sees, the matrix the filters at each position in
    the pool. With a single input channel that is about twice as fast as a convolution.
    """
    shifted = torch.stack([F.pad(filters, (shift, pool_size - 1 - shift)) for shift in range(pool_size)])
    matrix = shifted.flatten(0, 1)
    patches = waveform.unfold(-1, shifted.shape[-1], pool_size)
    items = len(patches) if waveform.is_cuda else _CPU_ROWS // patches.shape[1]
    pooled = [
        F.linear(some, matrix).unflatten(-1, shifted.shape[:2]).amax(dim=-2) for some in patches.split(max(1, items))
    ]
    return torch.cat(pooled).transpose(1, 2)


def _existing_frames(waveform: Tensor, n_frames: int, counts: Tensor | None) -> Tensor:
    """``(batch, n_frames)``, true before each item's frame count."""
    exists = torch.ones(len(waveform), n_frames, dtype=torch.bool, device=waveform.device)
    return exists if counts is None else mask_frames(exists, counts)


def _at_frames(features: Tensor, exists: Tensor) -> Tensor:
    """Feature vectors of the frames that exist, put in place: ``(batch, n_features, n_frames)``, else zero."""
    placed = features.new_zeros(*exists.shape, features.shape[-1])
    return placed.index_put(exists.nonzero(as_tuple=True), features).transpose(1, 2)
