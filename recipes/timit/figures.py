"""Pictures of a comparison: training curves, features, phone confusions; learned filters are in `filters`.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody: nothing here imports ``pyplot`` or
changes the backend or the settings of the program that calls it. ``figure.savefig(path)`` writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import nn

from recipes.timit.corpus import Segment
from recipes.timit.frontends import FRONTENDS, spec_of
from recipes.timit.model import pre_emphasize
from recipes.timit.phones import PHONES_39

History = Sequence[Mapping[str, float]]

# Okabe and Ito's palette: told apart with every common kind of colour blindness. Behind it six of Tol's "muted" one,
# which are darker, for the rows that seldom stand beside all the others.
PALETTE = (
    "#000000", "#D55E00", "#E69F00", "#0072B2", "#56B4E9", "#009E73", "#CC79A7",
    "#999933", "#882255", "#117733", "#44AA99", "#AA4499", "#332288",
)  # fmt: skip
BEFORE = "#8C8C8C"

PHONE_GROUPS: dict[str, tuple[str, ...]] = {
    "vowels": tuple("iy ih eh ae aa ah uh uw er".split()),
    "diphthongs": tuple("ey ay oy aw ow".split()),
    "semivowels": tuple("l r w y".split()),
    "nasals": tuple("m n ng".split()),
    "stops": tuple("b d g p t k dx".split()),
    "affricates": tuple("jh ch".split()),
    "fricatives": tuple("v dh z f th s sh hh".split()),
    "silence": ("sil",),
}
PHONE_ORDER = tuple(phone for group in PHONE_GROUPS.values() for phone in group)
assert sorted(PHONE_ORDER) == sorted(PHONES_39)

_FEATURE_SECONDS = 4.0
_TICKS = (0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 150)


@dataclass(frozen=True)
class LabelledAudio:
    """One utterance with its phones.

    Attributes:
        key: name of the utterance.
        samples: float32 ``(time,)`` in [-1, 1].
        sample_rate: Hz.
        segments: its phones, times in samples.
    """

    key: str
    samples: np.ndarray
    sample_rate: int
    segments: Sequence[Segment]


def colour_of(frontend: str) -> str:
    """The colour of a front end, the same in every figure.

    >>> colour_of("mfsc"), colour_of("kaleidoscope")
    ('#000000', '#0072B2')
    """
    return PALETTE[list(FRONTENDS).index(frontend) % len(PALETTE)]


def training_curves(
    histories: Mapping[str, Sequence[History]], *, title: str, lm_weight: float, realign_after: int = 0
) -> Figure:
    """Dev PER and frame errors by epoch: one colour a front end, thin lines for seeds, a thick one for their mean.

    Args:
        histories: records of each run's epochs by front end, one list a seed, with ``epoch``, ``dev_per``,
            ``dev_frame_error`` and ``train_frame_error`` (percent).
        title: above the figure; it names the corpus.
        lm_weight: language-model weight that ``dev_per`` was decoded with.
        realign_after: epochs after which the training labels were realigned; 0: never.
    """
    figure = Figure(figsize=(13.0, 5.6), layout="constrained")
    figure.suptitle(f"Training curves, {title}", fontsize=13)
    panels = figure.subplots(1, 3)
    for axes, (key, label) in zip(
        panels,
        (
            ("dev_per", f"dev PER, strict, LM weight {lm_weight:g} (%)"),
            ("dev_frame_error", "dev frame error (%)"),
            ("train_frame_error", "train frame error (%)"),
        ),
        strict=True,
    ):
        for frontend, runs in histories.items():
            _draw_runs(axes, [[record[key] for record in run] for run in runs], colour_of(frontend))
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if all(record[key] > 0 for runs in histories.values() for run in runs for record in run):
            _set_log_scale(axes)
        axes.grid(which="both", alpha=0.3)
        if 0 < realign_after < max(len(run) for runs in histories.values() for run in runs):
            axes.axvline(realign_after + 0.5, color=BEFORE, linestyle=":", linewidth=1.2, zorder=0)
            axes.text(
                realign_after + 0.5, 0.01, " labels realigned", color="#555555", fontsize=8, va="bottom",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
    handles = [Line2D([], [], color=colour_of(f), linewidth=2.4, label=spec_of(f).title) for f in histories]
    if any(len(runs) > 1 for runs in histories.values()):
        handles.append(Line2D([], [], color=BEFORE, linewidth=0.8, label="one seed (thick: their mean)"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=len(handles) if len(handles) <= 4 else 3, frameon=False
    )
    return figure


def _draw_runs(axes: Axes, runs: Sequence[Sequence[float]], colour: str) -> None:
    if len(runs) > 1:
        for values in runs:
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=0.8, alpha=0.55)
    common = min(len(values) for values in runs)
    mean = np.mean([values[:common] for values in runs], axis=0)
    marker = "o" if common < 30 else ""
    axes.plot(range(1, common + 1), mean, color=colour, linewidth=2.4, marker=marker, markersize=3.5)


def _set_log_scale(axes: Axes) -> None:
    """Equal steps for equal ratios: differences at the end show as well as those at the start."""
    axes.set_yscale("log")
    axes.set_ylabel(f"{axes.get_ylabel()}, log scale")
    low, high = axes.get_ylim()
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    if len(ticks) < 2:  # nothing has changed much: the limits themselves are better than an axis without numbers
        ticks = [low, high]
    axes.set_yticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_yticks([], minor=True)


# Features


def features(
    frontends: Mapping[str, nn.Module], audio: LabelledAudio, *, title: str, preemphasis: float = 0.0
) -> Figure:
    """One utterance under each front end, on one time axis with its phones.

    Args:
        frontends: trained modules by name, in evaluation mode.
        audio: the utterance; its first four seconds are shown.
        title: above the figure; it names the corpus.
        preemphasis: what the front ends were trained with.
    """
    rate = audio.sample_rate
    seconds = min(len(audio.samples) / rate, _FEATURE_SECONDS)
    figure = Figure(figsize=(max(9.0, 5.0 * seconds), 2.2 + 2.9 * len(frontends)), layout="constrained")
    figure.suptitle(f"Features of {audio.key} by trained front ends, {title}", fontsize=13)
    heights = [1.1] + [2.9] * len(frontends)
    panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    panels[0].plot(np.arange(len(audio.samples)) / rate, audio.samples, color="#444444", linewidth=0.5)
    panels[0].set_ylabel("waveform")
    for axes, (name, frontend) in zip(panels[1:], frontends.items(), strict=True):
        values = _features_of(frontend, audio.samples, preemphasis)
        hop = int(frontend.hop_length) / rate  # type: ignore[arg-type]
        shown = values[:, : int(seconds / hop) + 1]
        low, high = np.percentile(shown, [1.0, 99.5])
        box = (-hop / 2, (values.shape[1] - 0.5) * hop, 0.5, len(values) + 0.5)
        image = axes.imshow(
            values,
            origin="lower",
            aspect="auto",
            extent=box,
            cmap="magma",
            vmin=low,
            vmax=high,
            interpolation="nearest",
        )
        axes.set_title(spec_of(name).title, color=colour_of(name), fontsize=11, fontweight="bold", loc="left")
        axes.set_ylabel("channel")
        figure.colorbar(image, ax=axes, label="feature", pad=0.01)
    _mark_phones(panels, audio.segments, rate, seconds)
    panels[-1].set(xlabel="time (s)", xlim=(0.0, seconds))
    return figure


def _features_of(frontend: nn.Module, samples: np.ndarray, preemphasis: float) -> np.ndarray:
    parameter = next(frontend.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    with torch.no_grad():
        waveform = pre_emphasize(torch.from_numpy(samples).to(device)[None], preemphasis)
        values, _ = frontend(waveform, torch.tensor([len(samples)], device=device))
    return values[0].float().cpu().numpy()


def _mark_phones(panels: Sequence[Axes], segments: Sequence[Segment], rate: int, seconds: float) -> None:
    """Boundaries in all panels, names above the first; neighbours at alternating heights."""
    edges = sorted({t / rate for s in segments for t in (s.begin, s.end) if t / rate <= seconds})
    for axes, shade in zip(panels, ["#999999"] + ["white"] * (len(panels) - 1), strict=True):
        for edge in edges:
            axes.axvline(edge, color=shade, linewidth=0.6, alpha=0.75)
    for i, segment in enumerate(segments):
        centre = (segment.begin + min(segment.end, seconds * rate)) / (2 * rate)
        if segment.begin / rate < seconds:
            panels[0].annotate(
                segment.phone, (centre, 1.0), (0, 3 + 10 * (i % 2)), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="bottom", fontsize=9, annotation_clip=False,
            )  # fmt: skip


# Confusions


def confusion_matrix(pairs: Iterable[tuple[str | None, str | None, int]]) -> np.ndarray:
    """What each reference phone was recognised as, in percent of its occurrences.

    Args:
        pairs: reference phone, recognised phone and count; None on the left is an insertion, which is left out,
            on the right a deletion.

    Returns:
        ``(39, 40)``: rows and the first 39 columns in the order of `PHONE_ORDER`, the last column deletions; rows
        of phones that do not occur are NaN.

    >>> matrix = confusion_matrix([("iy", "iy", 6), ("iy", "ih", 1), ("iy", None, 1)])
    >>> matrix[0, :2].tolist(), float(matrix[0, -1])
    ([75.0, 12.5], 12.5)
    """
    place = {phone: i for i, phone in enumerate(PHONE_ORDER)}
    counts = np.zeros((len(PHONE_ORDER), len(PHONE_ORDER) + 1))
    for reference, recognised, count in pairs:
        if reference is not None:
            counts[place[reference], len(place) if recognised is None else place[recognised]] += count
    totals = counts.sum(axis=1, keepdims=True)
    return 100.0 * np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)


def confusions(matrices: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """Confusion matrices of several front ends side by side.

    Args:
        matrices: from `confusion_matrix`, by front end.
        title: above the figure; it names the corpus.
    """
    columns = min(len(matrices), 3)
    lines = -(-len(matrices) // columns)
    figure = Figure(figsize=(8.2 * columns + 0.8, 7.9 * lines + 0.6), layout="constrained")
    figure.suptitle(f"Phone confusions on test, {title}", fontsize=16)
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=False):
        # The root makes confusions of a few percent visible beside the diagonal.
        image = axes.imshow(matrix, norm=PowerNorm(0.5, 0.0, 100.0), cmap="Blues", interpolation="nearest")
        axes.set_facecolor("#DDDDDD")
        axes.set_title(spec_of(name).title, color=colour_of(name), fontsize=14, fontweight="bold")
        axes.set_xticks(range(matrix.shape[1]), [*PHONE_ORDER, "deleted"], rotation=90, fontsize=8)
        axes.set_yticks(range(matrix.shape[0]), PHONE_ORDER, fontsize=8)
        axes.set(xlabel="recognised as", ylabel="reference phone")
        at = -0.5
        for group in PHONE_GROUPS.values():
            at += len(group)
            axes.axvline(at, color="#888888", linewidth=0.6)
            axes.axhline(at, color="#888888", linewidth=0.6)
    for axes in panels[len(matrices) :]:
        axes.set_axis_off()
    figure.colorbar(image, ax=list(panels), label="% of the reference phone (grey: does not occur)", shrink=0.6)
    return figure
