"""Pictures of what training changed in a front end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from scipy.signal import resample
from torch import nn

from kaleido_audio import KMatrix
from kaleido_audio.frontends import SincNet
from kaleido_audio.transforms import KMelSpectrogram
from recipes.timit.figures import BEFORE

KALEIDOSCOPE_CAPTION = (
    "Grey is the start, colour what training made of it: a row still hears its own frequency where its response "
    "keeps to the diagonal, lines off the diagonal are other frequencies that it came to hear, and red weights of a "
    "filter are bins that it came to use."
)
SINCNET_CAPTION = (
    "Grey is the start, colour what training made of it: bands that moved or widened, and, in their sum, where on the "
    "frequency axis the network came to listen."
)

_FLOOR = 60.0  # dB below the peak at which images of responses end
_CHANGE = 20.0  # dB at which images of changes end
_SHOWN_ROWS = 6
_SHOWN_BANDS = 8
_INTERPOLATION = 8


def movement(before: np.ndarray, after: np.ndarray) -> float:
    """How far learning moved an array: the Frobenius norm of the change relative to that of the start, in percent.

    >>> movement(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    10.0
    """
    return float(100.0 * np.linalg.norm(after - before) / np.linalg.norm(before))


def learned_filters(
    before: nn.Module, after: nn.Module, *, title: str, colour: str, bandwidth: float
) -> tuple[Figure, str] | None:
    """What training changed in a front end, and what to see in it; None without learned parts that this can draw.

    Args:
        before, after: the same front end untrained and trained: `KMelSpectrogram` or `SincNet`.
        title: above the figure; it names the front end, the seed and the corpus.
        colour: of the trained front end.
        bandwidth: highest useful frequency of the corpus, Hz.
    """
    with torch.no_grad():
        if isinstance(before, SincNet) and isinstance(after, SincNet):
            return _sincnet_filters(before, after, title, colour), SINCNET_CAPTION
        if isinstance(before, KMelSpectrogram) and isinstance(after, KMelSpectrogram):
            figure = _kaleidoscope_filters(before, after, title, colour, bandwidth)
            return None if figure is None else (figure, KALEIDOSCOPE_CAPTION)
    return None


# Kaleidoscope


def analysis_rows(frontend: KMelSpectrogram) -> np.ndarray:
    """The window times each row of the transform that is in use: complex ``(n_freqs, win_length)``.

    Their inner products with the samples of a frame are the spectrum: row k of an untrained module is the windowed
    complex exponential of frequency ``k * sample_rate / n_fft``.
    """
    spectrogram = frontend.spectrogram
    transform = spectrogram.transform
    assert isinstance(transform, KMatrix)
    matrix = transform.to_dense().detach()[spectrogram.indices("rows")].cpu().numpy()
    window = spectrogram.window.detach().cpu().numpy()
    left = (spectrogram.n_fft - len(window)) // 2
    return matrix[:, left : left + len(window)] * window


def magnitude_responses(rows: np.ndarray, n_points: int) -> np.ndarray:
    """How strongly each row answers to real tones of amplitude 1, averaged over the phase of the tone.

    Args:
        rows: ``(n, time)``, real or complex.
        n_points: points of the Fourier transform, at least ``time``.

    Returns:
        root of the mean square, ``(n, n_points // 2 + 1)``, at frequencies from 0 to half the sample rate.

    >>> row = np.exp(-2j * np.pi * np.arange(8) / 4)[None]  # a quarter of the sample rate
    >>> magnitude_responses(row, 8).round(3)
    array([[0., 0., 4., 0., 0.]])
    """
    spectrum = np.abs(np.fft.fft(rows, n_points)) ** 2
    half = n_points // 2 + 1
    opposite = spectrum[:, -np.arange(half)]
    return np.sqrt((spectrum[:, :half] + opposite) / 4.0)


def _kaleidoscope_filters(
    before: KMelSpectrogram, after: KMelSpectrogram, title: str, colour: str, bandwidth: float
) -> Figure | None:
    has_rows = bool({"transform", "window"} & set(after.learnable))
    has_bank = "filterbank" in after.learnable
    if not has_rows and not has_bank:
        return None
    heights = [6.0, 5.0] * has_rows + [4.6] * has_bank
    figure = Figure(figsize=(17.0, sum(heights) + 0.7), layout="constrained")
    _widen_margins(figure)
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False).ravel())
    moved = []
    if has_rows:
        rows = analysis_rows(before), analysis_rows(after)
        responses = [magnitude_responses(r, 2 * before.spectrogram.n_fft) for r in rows]
        _row_panels(next(parts), rows, responses, before, colour, bandwidth)
        _response_images(next(parts), rows, responses, before.sample_rate, colour)
        moved.append(
            f"K-matrix rows by {movement(*rows):.3g} % (their magnitude responses {movement(*responses):.3g} %)"
        )
    if has_bank:
        banks = [f.mel_scale.weights.detach().cpu().numpy().T for f in (before, after)]
        _filterbank_panels(next(parts), banks[0], banks[1], before.sample_rate, colour)
        moved.append(f"the filterbank by {movement(*banks):.3g} %")
    figure.suptitle(f"{title}\nMoved (relative Frobenius norm): {', '.join(moved)}", fontsize=14)
    return figure


def _row_panels(
    figure: SubFigure,
    rows: tuple[np.ndarray, np.ndarray],
    responses: Sequence[np.ndarray],
    frontend: KMelSpectrogram,
    colour: str,
    bandwidth: float,
) -> None:
    """Six rows: in time above, their responses below."""
    rate, n_fft = frontend.sample_rate, frontend.spectrogram.n_fft
    wanted = np.geomspace(0.02 * bandwidth, 0.5 * bandwidth, _SHOWN_ROWS)
    bins = np.unique(np.clip(np.round(wanted * n_fft / rate).astype(int), 1, len(rows[0]) - 1))
    panels = figure.subplots(2, len(bins), squeeze=False, sharey="row")
    n_samples = rows[0].shape[1]
    milliseconds = 1000.0 * (np.arange(_INTERPOLATION * n_samples) / _INTERPOLATION - n_samples / 2) / rate
    kilohertz = np.linspace(0.0, rate / 2000.0, responses[0].shape[1])
    peak = responses[0].max()
    highest = max(0.0, float(_decibels(responses[1][bins], peak).max()))
    styles = ((BEFORE, "untrained"), (colour, "trained"))
    for (wave_axes, response_axes), row in zip(panels.T, bins, strict=True):
        for matrix, response, (shade, name) in zip(rows, responses, styles, strict=True):
            wave = resample(matrix[row], _INTERPOLATION * n_samples)
            wave_axes.plot(milliseconds, wave.real, color=shade, linewidth=1.3, label=f"{name}, real part")
            wave_axes.plot(
                milliseconds,
                wave.imag,
                color=shade,
                linewidth=1.0,
                linestyle=(0, (3, 1.5)),
                label=f"{name}, imaginary part",
            )
            response_axes.plot(kilohertz, _decibels(response[row], peak), color=shade, linewidth=1.2, label=name)
        reach = min(milliseconds[-1], 4000.0 * n_fft / (rate * row))
        wave_axes.set(title=f"row {row} (DFT: {row * rate / n_fft:.0f} Hz)", xlim=(-reach, reach), xlabel="time (ms)")
        response_axes.set(xlabel="frequency of a tone (kHz)", ylim=(-_FLOOR - 20.0, highest + 8.0))
        for axes in (wave_axes, response_axes):
            axes.grid(alpha=0.3)
    panels[0, 0].set_ylabel("window x row")
    panels[1, 0].set_ylabel("response (dB, 0: untrained peak)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _response_images(
    figure: SubFigure,
    rows: tuple[np.ndarray, np.ndarray],
    responses: Sequence[np.ndarray],
    sample_rate: float,
    colour: str,
) -> None:
    """Responses of all rows before and after, their change, and the change of each row's gain."""
    peak = responses[0].max()
    levels = [_decibels(response, peak).clip(-_FLOOR, None) for response in responses]
    panels = figure.subplots(1, 4, sharey=True, width_ratios=[1.0, 1.0, 1.0, 0.45])
    n_rows = len(rows[0])
    box = (0.0, sample_rate / 2000.0, -0.5, n_rows - 0.5)
    options: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": box, "interpolation": "nearest"}
    for axes, values, name in zip(panels, levels, ("untrained", "trained"), strict=False):
        image = axes.imshow(values, vmin=-_FLOOR, vmax=0.0, cmap="viridis", **options)
        axes.set_title(f"Responses of all rows, {name}")
    figure.colorbar(image, ax=panels[:2], label="dB, 0: untrained peak", shrink=0.9)
    image = panels[2].imshow(levels[1] - levels[0], vmin=-_CHANGE, vmax=_CHANGE, cmap="RdBu_r", **options)
    panels[2].set_title("Trained minus untrained")
    figure.colorbar(image, ax=panels[2], label=f"dB, from -{_FLOOR:.0f} dB up", shrink=0.9, extend="both")
    for axes in panels[:3]:
        axes.set_xlabel("frequency of a tone (kHz)")
    panels[0].set_ylabel("row of the K-matrix (bin)")
    norms = [np.linalg.norm(matrix, axis=1) for matrix in rows]
    panels[3].axvline(0.0, color=BEFORE, linewidth=1.6)
    panels[3].plot(20.0 * np.log10(norms[1] / norms[0]), np.arange(n_rows), color=colour, linewidth=1.0)
    panels[3].set(title="Gain of each row", xlabel="change (dB)")
    panels[3].grid(alpha=0.3)


def _filterbank_panels(
    figure: SubFigure, before: np.ndarray, after: np.ndarray, sample_rate: float, colour: str
) -> None:
    """The filterbank ``(n_bands, n_freqs)`` before and after, its change, and its filters as curves."""
    panels = figure.subplots(1, 4)
    limit = sample_rate / 2000.0
    kilohertz = np.linspace(0.0, limit, before.shape[1])
    step = kilohertz[1] / 2
    options: dict[str, Any] = {
        "origin": "lower",
        "aspect": "auto",
        "extent": (-step, limit + step, 0.5, len(before) + 0.5),
        "interpolation": "nearest",
    }
    top = max(float(before.max()), float(after.max()))
    for axes, values, name in zip(panels, (before, after), ("untrained", "trained"), strict=False):
        image = axes.imshow(values, vmin=0.0, vmax=top, cmap="viridis", **options)
        axes.set_title(f"Filterbank, {name}")
    figure.colorbar(image, ax=panels[:2], label="weight", shrink=0.9)
    change = after - before
    largest = max(float(np.abs(change).max()), 1e-6)
    image = panels[2].imshow(change, vmin=-largest, vmax=largest, cmap="RdBu_r", **options)
    panels[2].set_title("Trained minus untrained")
    figure.colorbar(image, ax=panels[2], label="change of weight", shrink=0.9)
    shown = np.unique(np.linspace(0, len(before) - 1, _SHOWN_BANDS).round().astype(int))
    for values, shade, width in ((before, BEFORE, 3.0), (after, colour, 1.3)):
        panels[3].plot(kilohertz[1:], values[shown, 1:].T, color=shade, linewidth=width)
    panels[3].legend(
        handles=[Line2D([], [], color=c, label=n) for c, n in ((BEFORE, "untrained"), (colour, "trained"))],
        loc="upper left",
    )
    panels[3].set(title=f"{len(shown)} of the filters", ylabel="weight (square-root scale)")
    panels[3].set(xscale="log", xlim=(kilohertz[1], limit), ylim=(0.0, 1.6 * top))
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8, 16) if kilohertz[1] <= tick <= limit]
    panels[3].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panels[3].set_xticks([], minor=True)
    # Small weights far from a filter's band are what training adds: on a linear scale they would not show.
    panels[3].set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0.0)), np.square))
    panels[3].grid(alpha=0.3)
    panels[0].set_ylabel("filter")
    for axes in panels:
        axes.set_xlabel("frequency of the bin (kHz)")


# SincNet


def _sincnet_filters(before: SincNet, after: SincNet, title: str, colour: str) -> Figure:
    """Band edges, their shifts, the sum of all responses, and six filters."""
    edges = [f.band_edges().detach().cpu().numpy() for f in (before, after)]
    taps = [f.filters().detach().cpu().numpy() for f in (before, after)]
    responses = [magnitude_responses(t, 1024) * np.sqrt(2.0) for t in taps]
    figure = Figure(figsize=(17.0, 11.0), layout="constrained")
    _widen_margins(figure)
    shift = np.abs(edges[1] - edges[0])
    figure.suptitle(
        f"{title}\nMoved: band edges by {shift.mean():.0f} Hz on average, {shift.max():.0f} Hz at most; "
        f"filters by {movement(*taps):.3g} % (relative Frobenius norm)",
        fontsize=14,
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=[6.0, 5.0], squeeze=False).ravel()
    bands, shifts, summed = upper.subplots(1, 3)
    number = np.arange(1, len(edges[0]) + 1)
    for values, shade, width, name in ((edges[0], BEFORE, 3.2, "untrained"), (edges[1], colour, 1.2, "trained")):
        bands.hlines(number, values[:, 0] / 1000, values[:, 1] / 1000, color=shade, linewidth=width, label=name)
    bands.set(title="Pass bands", xlabel="frequency (kHz)", ylabel="filter")
    bands.legend(loc="lower right")
    for column, name, marker in ((0, "lower edge", "v"), (1, "upper edge", "^")):
        face = colour if column else "none"
        shifts.scatter(
            edges[0][:, column] / 1000, edges[1][:, column] - edges[0][:, column],
            marker=marker, s=24, edgecolors=colour, facecolors=face, label=name,
        )  # fmt: skip
    shifts.axhline(0.0, color=BEFORE, linewidth=1.0)
    shifts.set(title="Shift of the edges", xlabel="untrained edge (kHz)", ylabel="shift (Hz)")
    shifts.legend()
    kilohertz = np.linspace(0.0, before.sample_rate / 2000.0, responses[0].shape[1])
    for values, shade, name in zip(responses, (BEFORE, colour), ("untrained", "trained"), strict=True):
        total = values.sum(axis=0)
        summed.plot(kilohertz, total / total.max(), color=shade, linewidth=1.6, label=name)
    summed.set(
        title="Sum of all responses", xlabel="frequency (kHz)", ylabel="relative to its maximum", ylim=(0.0, 1.05)
    )
    summed.legend()
    chosen = np.unique(np.linspace(0, len(number) - 1, _SHOWN_ROWS + 2).round().astype(int)[1:-1])
    panels = lower.subplots(1, len(chosen), sharey=True, squeeze=False).ravel()
    for axes, i in zip(panels, chosen, strict=True):
        for values, shade, name in zip(responses, (BEFORE, colour), ("untrained", "trained"), strict=True):
            axes.plot(kilohertz, _decibels(values[i], values[i].max()), color=shade, linewidth=1.4, label=name)
        low, high = edges[1][i]
        axes.set(title=f"filter {i + 1}: {low:.0f} to {high:.0f} Hz", xlabel="frequency (kHz)", ylim=(-_FLOOR, 3.0))
    panels[0].set_ylabel("response (dB, 0: its peak)")
    panels[0].legend(loc="upper right")
    for axes in (bands, shifts, summed, *panels):
        axes.grid(alpha=0.3)
    return figure


def _widen_margins(figure: Figure) -> None:
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(w_pad=0.12, h_pad=0.06)


def _decibels(values: np.ndarray, reference: float) -> np.ndarray:
    return 20.0 * np.log10(np.maximum(values / reference, 1e-6))
