"""Log-mel front ends on 41 s of audio: ours, torchaudio's, a dense learnable DFT, nnAudio's and LEAF; Kaldi's features.

Inference is one waveform without gradients; training is a batch of eight, forward and backward, with gradients of the
front end's own parameters. 16 kHz, windows of 25 ms every 10 ms, 40 channels, a log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import report
from benchmarks.peers import FIXED, OTHER_FEATURES, PEERS, Features, PeerUnavailable
from benchmarks.report import Target
from benchmarks.runner import Options, Results, Skip, check_memory, open_results, parse_options, run, selected, skip
from benchmarks.timing import Contestant, Measurement

SECONDS = 41
QUICK_SECONDS = 4
TRAINING_BATCH = 8
# Values of LEAF held at once, for every sample and channel: real and imaginary part, padded copies, square, pooled.
_LEAF_COPIES = 10


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        n_fft: points of the transform.
        training: forward and backward; else forward alone.
        threads: that torch may use.
    """

    n_fft: int
    training: bool = False
    threads: int = 1

    @property
    def name(self) -> str:
        """All of it, e.g. "inference-nfft512-t1"."""
        return f"{'training' if self.training else 'inference'}-nfft{self.n_fft}-t{self.threads}"


TARGETS = (
    Target(
        f"KMelSpectrogram + log, {SECONDS} s of audio, n_fft 512, inference, against torchaudio's",
        Case(512).name,
        "K",
        "torchaudio",
        1.0,
        0.6,
    ),
    Target("the same with n_fft 400", Case(400).name, "K", "torchaudio", 2.0, 1.2),
    Target(
        "KMelSpectrogram, n_fft 512, forward + backward, against a dense learnable DFT",
        Case(512, training=True).name,
        "dense DFT",
        "K",
        5,
        8,
    ),
)

CUDA_BATCH = 16
CUDA_TARGETS = (
    Target(
        f"KMelSpectrogram + log, {CUDA_BATCH} x {SECONDS} s of audio, n_fft 512, inference, against torchaudio's",
        Case(512).name,
        "K",
        "torchaudio",
        0.5,
        0.3,
    ),
)
"""A batch on a GPU: one signal leaves most of it idle."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then print and write the tables and the figure."""
    options = parse_options(
        "featurizer",
        __doc__,
        argv,
        "'targets' (the table of targets) or parts of names such as inference, training-nfft512 or t1",
    )
    path = options.out / f"featurizer{'-cuda' if options.device.type == 'cuda' else ''}.json"
    try:
        results = open_results(path, options)
        every = all_cases(options)
        wanted = CUDA_TARGETS if options.device.type == "cuda" else TARGETS
        targets = {target.case for target in wanted} & {case.name for case in every}
        cases = selected(every, options.patterns, {"targets": targets})
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.redraw:
        results.environment["audio_seconds"] = QUICK_SECONDS if options.quick else SECONDS
    finished = options.redraw or run(cases, Builder(options).contestants, describe, results, options)
    report.publish(results, sections(results), lambda: figure(results))
    return 0 if finished else 130


def all_cases(options: Options) -> list[Case]:
    """Every case, those of the targets first."""
    cases = [Case(512), Case(400), Case(512, training=True), Case(400, training=True)]
    return cases + [Case(c.n_fft, c.training, threads) for threads in options.threads if threads != 1 for c in cases]


class Builder:
    """Makes the contestants of a case: the front ends that can be imported here.

    Args:
        options: of the command line.
    """

    def __init__(self, options: Options) -> None:
        self.options = options

    def contestants(self, case: Case, results: Results) -> Mapping[str, Contestant]:
        """The contestants by name, ours first."""
        cores = results.environment["cores"] or 1
        if case.threads > cores:
            raise Skip(f"all: {case.threads} threads on {cores} cores")
        torch.manual_seed(0)
        device, settings = self.options.device, Features(case.n_fft)
        waveform = self._waveform(case, settings).to(device)
        found, features = {}, {}
        for name, make in PEERS.items():
            if case.training and name in FIXED:
                continue
            try:
                if name == "LEAF":
                    needed = 4.0 * _LEAF_COPIES * settings.n_mels * waveform.numel()
                    check_memory(name, needed, self.options.max_bytes, device)
                module = make(settings).to(device).train(case.training)
            except PeerUnavailable as reason:
                skip(results, case, f"{name}: {reason}")
                continue
            except Skip as reason:
                skip(results, case, str(reason))
                continue
            with torch.no_grad():
                features[name] = module(waveform)
            found[name] = _contestant(module, waveform, features[name], case)
        if case.threads == 1:
            results.notes[case.name] = _agreement(features)
        if device.type == "cuda":
            found["copy"] = Contestant(waveform.clone, case.threads)
        return found

    def _waveform(self, case: Case, settings: Features) -> Tensor:
        seconds = QUICK_SECONDS if self.options.quick else SECONDS
        if self.options.device.type == "cuda":
            return 0.1 * torch.randn(CUDA_BATCH, seconds * settings.sample_rate)
        batch = TRAINING_BATCH if case.training else 1
        return 0.1 * torch.randn(batch, seconds * settings.sample_rate // batch)


def _contestant(module: nn.Module, waveform: Tensor, features: Tensor, case: Case) -> Contestant:
    if not case.training:
        return Contestant(lambda: module(waveform), case.threads)
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradient = torch.randn_like(features)
    step: Callable[[], object] = lambda: torch.autograd.grad(module(waveform), parameters, gradient)  # noqa: E731
    return Contestant(step, case.threads, grad=True)


def _agreement(features: Mapping[str, Tensor]) -> list[str]:
    """How far the features of peers are from ours, where they mean to be the same."""
    same = {name: theirs for name, theirs in features.items() if name != "K" and name not in OTHER_FEATURES}
    parts = [
        f"{name} {float((theirs - features['K']).abs().max()):.1e}"
        if theirs.shape == features["K"].shape
        else f"{name} has another shape, {tuple(theirs.shape)}"
        for name, theirs in same.items()
    ]
    return [", ".join(parts)] if parts else []


def describe(case: Case, measurement: Measurement) -> str:
    """One line: milliseconds, and how many times ours the others take."""
    parts = []
    for name in measurement.seconds:
        ratio = "" if name == "K" else f" ({report.short_ratio(measurement.ratio(name, 'K'))})"
        parts.append(f"{name} {report.milliseconds(measurement.time(name))} ms{ratio}")
    rounds = max((len(values) for values in measurement.seconds.values()), default=0)
    return f"{', '.join(parts)}; {rounds} rounds"


# Tables


def case_of(name: str) -> Case:
    """The case of a name.

    >>> case_of("training-nfft400-t2") == Case(400, training=True, threads=2)
    True
    """
    mode, n_fft, threads = name.split("-")
    return Case(int(n_fft.removeprefix("nfft")), mode == "training", int(threads[1:]))


def sections(results: Results) -> list[str]:
    """All that is printed, the targets and the table for the README last."""
    parts = [report.heading(results.environment), _listing(results), _notes(results), report.skipped_lines(results)]
    return [*parts, _targets_section(results), _readme_table(results)]


def _audio(environment: Mapping[str, Any]) -> str:
    """What the front ends are given."""
    batch = f"{CUDA_BATCH} x " if environment["device"] == "cuda" else ""
    return f"{batch}{environment['audio_seconds']} s of audio"


def _listing(results: Results) -> str:
    rows = []
    for case, found in results.measurements.items():
        for name in found.seconds:
            ratio = "1x" if name == "K" else report.ratio_text(found.ratio(name, "K"))
            cells = [report.milliseconds(found.time(name)), ratio]
            if "copy" in found.seconds:
                cells.append(report.ratio_text(found.ratio(name, "copy")))
            rows.append([case, name, *cells])
    if not rows:
        return ""
    headers = ["case", "front end", "ms", "its time / K's"]
    headers += ["its time / a copy's"] if len(rows[0]) > 4 else []
    title = f"{_audio(results.environment)}:"
    return f"{title}\n\n{report.table(headers, rows, left=2)}"


def _notes(results: Results) -> str:
    lines = [f"- {case}: {line}" for case, notes in results.notes.items() for line in notes]
    return (
        "\n".join(["Largest difference of the log features from ours, before any training:", *lines]) if lines else ""
    )


def _targets_section(results: Results) -> str:
    environment = results.environment
    if environment["device"] == "cuda":
        lines = [f"Targets (float32, {_audio(environment)}):", "", report.target_table(CUDA_TARGETS, results)]
    else:
        lines = [f"Targets (float32, one thread, {_audio(environment)}):", "", report.target_table(TARGETS, results)]
        for note in report.target_notes(environment):
            lines += ["", note]
    if environment["audio_seconds"] != SECONDS:
        lines += ["", f"Note: the targets are defined on {SECONDS} s of audio."]
    return "\n".join(lines)


def _readme_table(results: Results) -> str:
    columns = {"inference, n_fft 512": Case(512), "inference, n_fft 400": Case(400),
               "training, n_fft 512": Case(512, training=True)}  # fmt: skip
    rows = []
    for name in PEERS:
        times = [results.get(case.name).time(name) for case in columns.values()]
        if any(time is not None for time in times):
            rows.append([name, *map(report.milliseconds, times)])
    if not rows:
        return ""
    where = report.listed(report.threads_text(results.environment, 1), report.hardware(results.environment))
    title = f"For the README (milliseconds for {_audio(results.environment)}; {where}):"
    return f"{title}\n\n{report.table(['front end', *columns], rows)}"


# Figure


def figure(results: Results) -> Figure | None:
    """One panel a case, one bar a front end, one scale for all."""
    cases = {case.name: case for case in map(case_of, results.measurements) if results.get(case.name).seconds}
    ordered = sorted(cases.values(), key=lambda case: (case.threads, case.training, -case.n_fft))
    if not ordered:
        return None
    columns = min(2, len(ordered))
    rows = -(-len(ordered) // columns)
    drawn = Figure(figsize=(6.5 * columns, 1.2 + 2.2 * rows), layout="constrained")
    environment = results.environment
    drawn.suptitle(f"Log-mel front ends, {_audio(environment)}: {report.hardware(environment)}")
    panels = drawn.subplots(rows, columns, squeeze=False, sharex=True)
    for axes, case in zip(panels.flatten(), ordered, strict=False):
        _draw_bars(axes, case, results.get(case.name), report.threads_text(environment, case.threads))
    for axes in panels.flatten()[len(ordered) :]:
        axes.remove()
    times = [1e3 * seconds for found in results.measurements.values() for name, values in found.seconds.items()
             if name != "copy" for seconds in values]  # fmt: skip
    panels[0, 0].set_xlim(min(times) / 2, max(times) * 8)
    for axes in panels[-1]:
        axes.set_xlabel("milliseconds, log scale; in brackets: times ours")
    return drawn


def _draw_bars(axes: Axes, case: Case, measurement: Measurement, threads: str) -> None:
    spreads = {name: time for name in PEERS if (time := measurement.time(name)) is not None}
    medians = [1e3 * time.median for time in spreads.values()]
    below = [1e3 * (time.median - time.low) for time in spreads.values()]
    above = [1e3 * (time.high - time.median) for time in spreads.values()]
    labels = ["K (ours)" if name == "K" else name for name in spreads]
    colours = [report.COLOURS[name] for name in spreads]
    axes.barh(labels, medians, color=colours, xerr=[below, above], ecolor="#444444", capsize=3)
    for i, (name, time) in enumerate(spreads.items()):
        relative = measurement.ratio(name, "K")
        ratio = "" if name == "K" or relative is None else f" ({report.short_ratio(relative)})"
        axes.annotate(
            f"{report.milliseconds(time)} ms{ratio}", (1e3 * time.high, i), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=9,
        )  # fmt: skip
    axes.set_xscale("log")
    report.plain_log_axis(axes.xaxis)
    axes.tick_params(axis="x", labelsize=8)
    axes.invert_yaxis()
    mode = "forward + backward" if case.training else "inference"
    axes.set_title(report.listed(mode, f"n_fft {case.n_fft}", threads))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


if __name__ == "__main__":
    sys.exit(main())
