"""Reading TIMIT, or another corpus in its layout, with every file checked before training begins.

A corpus is a folder with ``TRAIN`` and ``TEST`` below it, then ``<region>/<SPEAKER>/<SENTENCE>.WAV`` and
``.PHN``. With a ``corpus.json`` beside ``TRAIN`` it is a stand-in (see :mod:`recipes.timit.layout`), which
brings its own name, splits and counts; without one it is TIMIT itself (LDC93S1), with the splits of Kaldi's
recipe: 462 train speakers, 50 dev and 24 core-test speakers of ``TEST``. The other 94 speakers of ``TEST``
and the SA sentences are left out.

The split of an utterance follows from the folder (``TRAIN`` or ``TEST``) right below the corpus and from the
speaker, never from the rest of the path; names are compared without regard to case.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from recipes.timit.phones import PHONES_61, transcript_39

SPLITS = ("train", "dev", "test")
LABELS = ("human", "exact", "pseudo-labels")
"""Where phone labels come from: a person, a synthesizer's own times, an aligner."""
SHORTEST = 0.025
"""Shortest usable utterance, in seconds: one 25 ms analysis frame."""
END_TOLERANCE = 1600
"""How far, in samples, the last segment may reach beyond the audio and be clamped: 0.1 s at 16 kHz."""
LARGEST_SAMPLE = 2.0
"""Float samples beyond this (6 dB over full scale, more than resampling can overshoot) are not in [-1, 1]."""

_SA_SENTENCES = frozenset(("sa1", "sa2"))
_PHONES = frozenset(PHONES_61)
_SEARCH_DEPTH = 2
_SHOWN = 8


class CorpusError(ValueError):
    """A corpus, or a file in it, that cannot be used; the message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One phone (of TIMIT's 61) of an utterance, from sample ``begin`` up to, and without, ``end``."""

    begin: int
    end: int
    phone: str


@dataclass(frozen=True)
class Utterance:
    """One sentence by one speaker.

    Attributes:
        key: ``<speaker>_<sentence>``, lower case, unique in the corpus.
        speaker: lower case, such as "fadg0".
        sentence: lower case, such as "sx199".
        wav: the audio file, for :func:`read_audio`.
        phn: the file the segments were read from.
        n_samples: length of the audio.
        segments: the phones, in order, without overlap, inside the audio.
        digest: of the samples as :func:`to_int16` gives them.
    """

    key: str
    speaker: str
    sentence: str
    wav: Path
    phn: Path
    n_samples: int
    segments: tuple[Segment, ...]
    digest: str


@dataclass(frozen=True)
class Skipped:
    """An utterance that was left out (``skip_bad``), and why; ``reason`` names the file at fault."""

    split: str
    key: str
    path: Path
    reason: str


@dataclass(frozen=True)
class Corpus:
    """A checked corpus.

    Attributes:
        name: "TIMIT", or the name of a stand-in.
        labels: where the phone labels come from, one of :data:`LABELS`; "human" for TIMIT.
        root: the folder that contains ``TRAIN`` and ``TEST``.
        sample_rate: in Hz.
        bandwidth: highest useful frequency, in Hz.
        train, dev, test: the utterances, sorted by key.
        skipped: utterances left out because they are bad; empty unless ``skip_bad`` was asked for.
    """

    name: str
    labels: str
    root: Path
    sample_rate: int
    bandwidth: float
    train: tuple[Utterance, ...]
    dev: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    skipped: tuple[Skipped, ...] = ()

    def split(self, name: str) -> tuple[Utterance, ...]:
        """Return the utterances of "train", "dev" or "test"."""
        if name not in SPLITS:
            raise ValueError(f"split {name!r}: expected one of {', '.join(SPLITS)}")
        utterances: tuple[Utterance, ...] = getattr(self, name)
        return utterances

    @property
    def title(self) -> str:
        """Name and kind of labels, e.g. "synthetic (exact labels)"."""
        return f"{self.name} ({self.labels if self.labels.endswith('labels') else f'{self.labels} labels'})"

    def summary(self) -> str:
        """Describe the corpus: speakers, utterances and hours by split, and what was skipped and why."""
        lines = [f"{self.title} in {self.root}"]
        for name in SPLITS:
            utterances = self.split(name)
            hours = sum(u.n_samples for u in utterances) / self.sample_rate / 3600
            speakers = len({u.speaker for u in utterances})
            lines.append(f"  {name}: {speakers} speakers, {len(utterances)} utterances, {hours:.2f} h")
        if self.skipped:
            skipped = ", ".join(f"{n} of {split}" for split, n in Counter(s.split for s in self.skipped).items())
            lines.append(f"  INCOMPLETE: bad utterances left out: {skipped}; results do not compare with other tables")
            lines += [f"    {s.reason}" for s in self.skipped]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Expected:
    """What a split must hold; None where that is not known beforehand."""

    n_speakers: int
    n_utterances: int
    speakers: frozenset[str] | None = None
    utterances_per_speaker: int | None = None
    n_phones: int | None = None


@dataclass(frozen=True)
class _Description:
    name: str
    labels: str
    sample_rate: int
    bandwidth: float
    expected: Mapping[str, _Expected]
    remedy: str


_DEV_SPEAKERS = frozenset(
    "fadg0 faks0 fcal1 fcmh0 fdac1 fdms0 fdrw0 fedw0 fgjd0 fjem0 fjmg0 fjsj0 fkms0 fmah0 fmml0 fnmr0 frew0 "
    "fsem0 majc0 mbdg0 mbns0 mbwm0 mcsh0 mdlf0 mdls0 mdvc0 mers0 mgjf0 mglb0 mgwt0 mjar0 mjfc0 mjsw0 mmdb1 "
    "mmdm2 mmjr0 mmwh0 mpdf0 mrcs0 mreb0 mrjm4 mrjr0 mroa0 mrtk0 mrws1 mtaa0 mtdt0 mteb0 mthc0 mwjg0".split()
)
_CORE_TEST_SPEAKERS = frozenset(
    "fdhc0 felc0 fjlm0 fmgd0 fmld0 fnlp0 fpas0 fpkt0 mbpm0 mcmj0 mdab0 mgrt0 mjdh0 mjln0 mjmp0 mklt0 mlll0 "
    "mlnt0 mnjm0 mpam0 mtas1 mtls0 mwbt0 mwew0".split()
)
_TIMIT = _Description(
    name="TIMIT",
    labels="human",
    sample_rate=16000,
    bandwidth=8000.0,
    expected={
        "train": _Expected(462, 3696, utterances_per_speaker=8),
        "dev": _Expected(50, 400, _DEV_SPEAKERS, utterances_per_speaker=8, n_phones=15057),
        "test": _Expected(24, 192, _CORE_TEST_SPEAKERS, utterances_per_speaker=8, n_phones=7215),
    },
    remedy="copy TIMIT (LDC93S1) again, or remove what does not belong; another corpus needs a corpus.json",
)
# How TIMIT's 462 train speakers spread over its dialect regions: says where to look for a missing one.
_TRAIN_REGIONS = {"dr1": 38, "dr2": 76, "dr3": 76, "dr4": 68, "dr5": 70, "dr6": 35, "dr7": 77, "dr8": 22}


@dataclass
class _Files:
    """The files of one utterance, copies included."""

    split: str
    speaker: str
    sentence: str
    folder: Path
    audio: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.speaker}_{self.sentence}"


def load_corpus(
    root: str | os.PathLike[str],
    *,
    skip_bad: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Load TIMIT, or a stand-in in its layout, and check all of it.

    Speakers and utterances are counted against the splits; every audio file is read and every ``.PHN``
    parsed, so that training never meets a bad one. For TIMIT itself the phones of dev (15057) and core test
    (7215), folded to 39, are counted too. Loading takes seconds, so nothing is cached.

    Args:
        root: the folder that contains ``TRAIN`` and ``TEST``, or one up to two levels above it.
        skip_bad: leave out an utterance whose files are bad or of which one is missing, and list it in
            ``Corpus.skipped``, instead of raising. An utterance or speaker that is missing altogether, or
            doubled, is an error all the same.
        progress: called with (utterances checked, utterances in all) after each utterance.

    Returns:
        The corpus, its utterances sorted by key.

    Raises:
        CorpusError: if ``root`` holds no such corpus or several; if speakers or utterances are missing or
            doubled (named in the message); if a file is bad (the first few are named).
    """
    folder = find_corpus(root)
    description = _describe(folder)
    found = _scan(folder, description)
    if not found:
        raise _no_speech(folder)
    _check_counts(folder, description, found)

    utterances: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    skipped = []
    for done, files in enumerate(found, start=1):
        try:
            utterances[files.split].append(_load_utterance(files, description.sample_rate))
        except CorpusError as error:
            path = (files.audio or files.labels)[0]
            skipped.append(Skipped(files.split, files.key, path, str(error)))
        if progress is not None:
            progress(done, len(found))
    if skipped and not skip_bad:
        reasons = listed((s.reason for s in skipped), "\n")
        raise CorpusError(
            f"{folder}: {len(skipped)} of {len(found)} utterances are bad:\n{reasons}\n"
            "Mend these files, or ask to skip bad utterances (skip_bad=True, --skip-bad)."
        )
    empty = [split for split in SPLITS if not utterances[split]]
    if empty:
        raise CorpusError(f"{folder}: no good utterance in {' and '.join(empty)}; first reason: {skipped[0].reason}")
    _check_phone_totals(folder, description, utterances, skipped)
    return Corpus(
        name=description.name,
        labels=description.labels,
        root=folder,
        sample_rate=description.sample_rate,
        bandwidth=description.bandwidth,
        skipped=tuple(skipped),
        **{split: tuple(its) for split, its in utterances.items()},
    )


def read_audio(path: str | os.PathLike[str], *, sample_rate: int = 16000) -> np.ndarray:
    """Read a mono audio file whole.

    The first bytes decide on the format (NIST SPHERE, RIFF or another one of libsndfile's), not the name:
    TIMIT's ``.WAV`` is NIST SPHERE.

    Args:
        path: the audio file.
        sample_rate: the rate it must have, in Hz.

    Returns:
        float32 samples ``(n_samples,)``; 16-bit samples are divided by 32768, exactly.

    Raises:
        CorpusError: if the file is missing, unreadable, empty, shorter than its header says, at another rate,
            not mono, or holds NaN or infinite samples, or float samples far outside [-1, 1].
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise CorpusError(f"{path}: empty file; copy it again")
        with path.open("rb") as file:
            _check_declared_size(file, size, path)
        with soundfile.SoundFile(path) as audio:
            if audio.samplerate != sample_rate:
                raise CorpusError(f"{path}: {audio.samplerate} Hz, expected {sample_rate} Hz; resample it")
            if audio.channels != 1:
                raise CorpusError(f"{path}: {audio.channels} channels, expected one; keep one of them")
            declared = audio.frames
            samples: np.ndarray = audio.read(dtype="float32")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file") from None
    except (soundfile.SoundFileError, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as audio ({error}); copy it again") from error
    if len(samples) < declared:
        raise _truncated(path, declared, len(samples))
    if not len(samples):
        raise CorpusError(f"{path}: no samples; copy it again")
    # One pass decides it: NaN and infinities both reach the maximum.
    peak = float(np.abs(samples).max())
    if not np.isfinite(peak):
        bad = len(samples) - int(np.isfinite(samples).sum())
        raise CorpusError(f"{path}: {bad} of {len(samples)} samples are NaN or infinite; copy or convert it again")
    if peak > LARGEST_SAMPLE:
        raise CorpusError(f"{path}: float samples reach {peak:g}, expected [-1, 1]; scale them (16 bit: by 1/32768)")
    return samples


def to_int16(samples: np.ndarray) -> np.ndarray:
    """What is kept of float samples: 16 bits, of which those of a 16-bit file come back exactly."""
    return np.round(samples * 32768.0).clip(-32768, 32767).astype(np.int16)


def read_phn(path: str | os.PathLike[str], *, n_samples: int) -> tuple[Segment, ...]:
    """Read a ``.PHN`` file: rows ``begin end phone``, in samples, the phone one of TIMIT's 61.

    A last segment that ends up to :data:`END_TOLERANCE` samples beyond the audio is clamped to its end, as
    TIMIT's label times and audio lengths do not always agree. Gaps between segments, and audio before the
    first or after the last, are allowed: frames there get no label.

    Args:
        path: the label file.
        n_samples: length of the utterance's audio.

    Returns:
        The segments, in order, without overlap, inside the audio.

    Raises:
        CorpusError: if the file is missing, empty or not text, or a row is malformed, has an unknown phone,
            is empty (end <= begin), out of order, overlapping, or out of range; the message names the file
            and the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("ascii")
    except FileNotFoundError:
        raise CorpusError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError) as error:
        raise CorpusError(f"{path}: cannot be read as text ({error}); copy it again") from error
    rows = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not rows:
        raise CorpusError(f"{path}: no segments; copy it again")
    segments: list[Segment] = []
    for number, line in rows:
        segment = _parse_row(line, f"{path}:{number}")
        is_last = number == rows[-1][0]
        if is_last and segment.begin < n_samples < segment.end <= n_samples + END_TOLERANCE:
            segment = Segment(segment.begin, n_samples, segment.phone)
        problem = segment_problem(segment, segments[-1] if segments else None, n_samples)
        if problem:
            raise CorpusError(f"{path}:{number}: {segment.phone} {problem}; mend the row")
        segments.append(segment)
    return tuple(segments)


def segment_problem(segment: Segment, previous: Segment | None, n_samples: int) -> str | None:
    """Say what is wrong with a segment, given the one before it and the utterance's length in samples."""
    begin, end = segment.begin, segment.end
    if segment.phone not in _PHONES:
        return f"is not one of TIMIT's 61 phones: {' '.join(PHONES_61)}"
    if begin < 0 or end <= begin:
        return f"runs from sample {begin} to {end}, expected 0 <= begin < end"
    if previous is not None and begin < previous.begin:
        return f"begins at sample {begin}, out of order: the segment before it begins at {previous.begin}"
    if previous is not None and begin < previous.end:
        return f"begins at sample {begin} and overlaps the segment before it, which ends at {previous.end}"
    if end > n_samples:
        return f"ends at sample {end}, beyond the audio's {n_samples} samples"
    return None


def find_corpus(root: str | os.PathLike[str]) -> Path:
    """Find the folder that contains ``TRAIN`` and ``TEST``: ``root``, or one up to two levels below it.

    Names are compared without regard to case, and hidden folders are not searched.

    Raises:
        CorpusError: if there is none, or more than one; the message says what was looked for and what was
            found.
    """
    top = Path(root).expanduser()
    if not top.is_dir():
        state = "is a file, not a folder" if top.exists() else "does not exist"
        raise CorpusError(f"{top} {state}; give the folder of the corpus (the one that contains TRAIN and TEST)")
    candidates: dict[Path, Path] = {}
    level = [top]
    for _ in range(_SEARCH_DEPTH + 1):
        corpora = [folder for folder in level if _is_corpus(folder)]
        candidates.update((folder.resolve(), folder) for folder in corpora)
        level = [child for folder in level if folder not in corpora for child in _folders(folder)]
    if len(candidates) == 1:
        return next(iter(candidates.values()))
    if candidates:
        raise CorpusError(f"{top} contains several corpora: {listed(map(str, candidates.values()))}; give one of them")
    if _is_corpus(top.absolute().parent):
        raise CorpusError(f"{top} is a part of a corpus; give the folder above it, {top.absolute().parent}")
    names = sorted(entry.name for entry in top.iterdir())
    raise CorpusError(
        f"{top} is not TIMIT or a corpus in its layout: looked for a folder that contains TRAIN and TEST (in "
        f"upper or lower case) here and {_SEARCH_DEPTH} levels below; found {listed(names) or 'nothing'}. "
        "Give the folder of TIMIT (LDC93S1), or make a stand-in with `prepare`."
    )


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:
        return []


def _is_corpus(folder: Path) -> bool:
    return {"train", "test"} <= {child.name.lower() for child in _folders(folder)}


def _half(folder: Path, name: str) -> Path:
    """Return the TRAIN or TEST folder of a corpus, whatever its case."""
    found = [child for child in _folders(folder) if child.name.lower() == name]
    if len(found) > 1:
        raise CorpusError(f"{folder} has both {found[0].name} and {found[1].name}; merge them, or remove one")
    return found[0]


def _describe(folder: Path) -> _Description:
    path = folder / "corpus.json"
    if not path.is_file():
        return _TIMIT
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        description = _parse_description(about)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CorpusError(f"{path}: not a description of a corpus ({reason}); make the stand-in again") from error
    return description


def _parse_description(about: Mapping[str, Any]) -> _Description:
    name, labels = about["name"], about["labels"]
    if not isinstance(name, str) or not name or "timit" in name.lower():
        raise ValueError(f"name {name!r}: a stand-in needs a name of its own, without 'TIMIT'")
    if labels not in LABELS:
        raise ValueError(f"labels {labels!r}: expected one of {', '.join(LABELS)}")
    sample_rate, bandwidth = int(about["sample_rate"]), float(about["bandwidth"])
    for split in SPLITS:
        if not about["speakers"][split]:
            raise ValueError(f"no speakers in {split}")
    if not 0 < bandwidth <= sample_rate / 2:
        raise ValueError(f"bandwidth {bandwidth} Hz at {sample_rate} Hz: expected 0 < bandwidth <= sample_rate / 2")
    speakers = {split: [str(s).lower() for s in about["speakers"][split]] for split in SPLITS}
    often = [s for s, n in Counter(s for its in speakers.values() for s in its).items() if n > 1]
    if often:
        raise ValueError(f"speakers listed more than once: {listed(often)}")
    expected = {
        split: _Expected(len(its), int(about["utterances"][split]), frozenset(its)) for split, its in speakers.items()
    }
    return _Description(name, labels, sample_rate, bandwidth, expected, remedy="make the stand-in again")


def _scan(folder: Path, description: _Description) -> list[_Files]:
    """List the files of every utterance of the splits, sorted by key."""
    expected = description.expected
    in_test = {s: split for split in ("dev", "test") for s in expected[split].speakers or ()}
    found: dict[str, _Files] = {}
    homes: dict[str, set[Path]] = defaultdict(set)
    for half in ("train", "test"):
        for path in _files_below(_half(folder, half)):
            sentence, is_audio = _sentence(path.name)
            if sentence is None or sentence in _SA_SENTENCES:
                continue
            speaker = path.parent.name.lower()
            homes[speaker].add(path.parent)
            split = "train" if half == "train" else in_test.get(speaker)
            if split is None:
                continue
            files = _Files(split, speaker, sentence, path.parent)
            files = found.setdefault(files.key, files)
            (files.audio if is_audio else files.labels).append(path)
    doubled = [f"{speaker} ({' and '.join(sorted(map(str, its)))})" for speaker, its in homes.items() if len(its) > 1]
    if doubled:
        raise CorpusError(
            f"{folder}: speakers that are there more than once: {listed(doubled, '; ')}; remove one of each"
        )
    misplaced = sorted({f.speaker for f in found.values() if f.split == "train" and f.speaker in in_test})
    if misplaced:
        raise CorpusError(f"{folder}: dev or test speakers in TRAIN: {listed(misplaced)}; move them to TEST")
    return [found[key] for key in sorted(found)]


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        # Hidden names are other programs' notes, such as macOS's "._SX1.WAV" beside "SX1.WAV".
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(parent, name)


def _sentence(name: str) -> tuple[str | None, bool]:
    """Return a file's sentence, or None, and whether it is audio: "SX1.WAV.wav" gives ("sx1", True)."""
    stem = name.lower()
    if stem.endswith(".phn"):
        return stem[: -len(".phn")], False
    if not stem.endswith(".wav"):
        return None, False
    while stem.endswith(".wav"):
        stem = stem[: -len(".wav")]
    return stem, True


def _no_speech(folder: Path) -> CorpusError:
    paths = (path.relative_to(folder) for half in ("train", "test") for path in _files_below(_half(folder, half)))
    found = [str(path) for path in islice(paths, _SHOWN)]
    return CorpusError(
        f"{folder} has TRAIN and TEST, but no speech in TIMIT's layout: looked for files such as "
        f"TRAIN/DR1/FCJF0/SX127.WAV and .PHN, found {', '.join(found) or 'no files'}. "
        "Give the folder of TIMIT (LDC93S1)."
    )


def _check_counts(folder: Path, description: _Description, found: Iterable[_Files]) -> None:
    by_split: dict[str, dict[str, list[_Files]]] = {split: defaultdict(list) for split in SPLITS}
    for files in found:
        by_split[files.split][files.speaker].append(files)
    problems = []
    for split, speakers in by_split.items():
        expected = description.expected[split]
        n_utterances = sum(map(len, speakers.values()))
        notes = []
        if expected.speakers is not None:
            missing = sorted(expected.speakers - set(speakers))
            notes += [f"missing speakers: {listed(missing)}"] if missing else []
            extra = sorted(set(speakers) - expected.speakers)
            notes += [f"speakers that do not belong: {listed(extra)}"] if extra else []
        elif len(speakers) != expected.n_speakers:
            notes += _region_notes(speakers)
        if expected.utterances_per_speaker is not None:
            odd = [
                f"{speaker} has {len(its)} of {expected.utterances_per_speaker} ({' '.join(f.sentence for f in its)})"
                for speaker, its in speakers.items()
                if len(its) != expected.utterances_per_speaker
            ]
            notes += [f"utterances by speaker: {listed(odd, '; ')}"] if odd else []
        if notes or len(speakers) != expected.n_speakers or n_utterances != expected.n_utterances:
            problems.append(
                f"{split} has {len(speakers)} of {expected.n_speakers} speakers and {n_utterances} of "
                f"{expected.n_utterances} utterances" + "".join(f"; {note}" for note in notes)
            )
    if problems:
        raise CorpusError(
            f"{folder} is not all of {description.name}: {'. '.join(problems)}. To do: {description.remedy}."
        )


def _region_notes(speakers: Mapping[str, list[_Files]]) -> list[str]:
    """Say in which dialect regions of TIMIT's TRAIN the number of speakers is off."""
    regions = Counter(its[0].folder.parent.name.lower() for its in speakers.values())
    odd = [f"{r.upper()} has {regions[r]} of {n}" for r, n in _TRAIN_REGIONS.items() if regions[r] != n]
    odd += [f"{r} has {n}, expected no such folder" for r, n in sorted(regions.items()) if r not in _TRAIN_REGIONS]
    return [f"speakers by region: {listed(odd)}"]


def _check_phone_totals(
    folder: Path,
    description: _Description,
    utterances: Mapping[str, list[Utterance]],
    skipped: Iterable[Skipped],
) -> None:
    incomplete = {s.split for s in skipped}
    for split, its in utterances.items():
        n_phones = description.expected[split].n_phones
        total = sum(len(transcript_39(u.segments)) for u in its)
        if n_phones is not None and split not in incomplete and total != n_phones:
            raise CorpusError(
                f"{folder}: the .PHN files of {split} hold {total} phones (folded to 39), expected "
                f"{n_phones}: they are not those of TIMIT (LDC93S1); copy its .PHN files again"
            )


def _load_utterance(files: _Files, sample_rate: int) -> Utterance:
    if not files.audio:
        raise CorpusError(f"{files.labels[0]}: no audio file (.WAV) beside it; copy it again")
    if not files.labels:
        raise CorpusError(f"{files.audio[0]}: no label file (.PHN) beside it; copy it again")
    wav, *copies = sorted(files.audio, key=_preference)
    samples = read_audio(wav, sample_rate=sample_rate)
    for copy in copies:
        _check_copy(wav, samples, copy, read_audio(copy, sample_rate=sample_rate))
    if len(samples) < SHORTEST * sample_rate:
        raise CorpusError(
            f"{wav}: {len(samples)} samples, shorter than one frame of {1000 * SHORTEST:g} ms; copy it again"
        )
    if not samples.any():
        raise CorpusError(f"{wav}: every sample is zero; copy it again")
    phn, *others = files.labels
    segments = read_phn(phn, n_samples=len(samples))
    for other in others:
        if read_phn(other, n_samples=len(samples)) != segments:
            raise CorpusError(f"{phn} and {other}: two label files for one utterance that differ; remove the wrong one")
    if not transcript_39(segments):
        raise CorpusError(f"{phn}: no phone but q, which is neither learned nor scored; mend the file")
    digest = hashlib.sha256(to_int16(samples).data).hexdigest()[:16]
    return Utterance(files.key, files.speaker, files.sentence, wav, phn, len(samples), segments, digest)


def _preference(path: Path) -> tuple[bool, int, str]:
    """Sort key of an utterance's audio files: the NIST SPHERE original, then the shortest name."""
    try:
        with path.open("rb") as file:
            is_sphere = file.read(4) == b"NIST"
    except OSError:
        is_sphere = False
    return not is_sphere, len(path.name), path.name


def _check_copy(wav: Path, samples: np.ndarray, copy: Path, its_samples: np.ndarray) -> None:
    """Accept a copy that differs by rounding: by at most one step of 16 bits."""
    if len(its_samples) != len(samples):
        problem = f"{len(samples)} and {len(its_samples)} samples"
    elif np.abs(its_samples - samples).max() > 1.01 / 32768:
        problem = f"samples differ by up to {np.abs(its_samples - samples).max():.3g}"
    else:
        return
    raise CorpusError(
        f"{wav} and {copy}: two audio files for one utterance that differ ({problem}); remove the wrong one"
    )


def _parse_row(line: str, where: str) -> Segment:
    fields = line.split()
    try:
        begin, end, phone = fields
        return Segment(int(begin), int(end), phone.lower())
    except ValueError:
        raise CorpusError(f"{where}: expected `begin end phone` with times in samples, got {line.strip()!r}") from None


def _check_declared_size(file: BinaryIO, size: int, path: Path) -> None:
    """Compare a file's size with what its header promises: libsndfile reads a truncated file in silence."""
    magic = file.read(8)
    if magic.startswith(b"NIST_1A"):
        _check_sphere(file, size, path)
    elif magic.startswith(b"RIFF"):
        _check_riff(file, size, path)


def _check_sphere(file: BinaryIO, size: int, path: Path) -> None:
    """Check the text header of NIST SPHERE: "NIST_1A", the header's size, then lines `name -type value`."""
    try:
        header_size = int(file.readline())
        lines = file.read(header_size).partition(b"end_head")[0].decode("latin-1").splitlines()
        fields = {line[0]: line[2] for line in (line.split(None, 2) for line in lines) if len(line) == 3}
        frame_bytes = int(fields.get("sample_n_bytes", 2)) * int(fields.get("channel_count", 1))
        declared = int(fields["sample_count"])
    except (KeyError, ValueError) as error:
        raise CorpusError(f"{path}: damaged NIST SPHERE header ({error!r}); copy it again") from error
    coding = fields.get("sample_coding", "pcm")
    if "," in coding:
        raise CorpusError(f"{path}: compressed NIST SPHERE ({coding}); decompress it (sph2pipe -p -f sph)")
    if size < header_size + declared * frame_bytes:
        raise _truncated(path, declared, max(0, size - header_size) // frame_bytes)


def _check_riff(file: BinaryIO, size: int, path: Path) -> None:
    """Walk the chunks of a RIFF file to its data chunk."""
    frame_bytes = 1
    file.seek(12)
    while len(chunk := file.read(8)) == 8:
        length = int.from_bytes(chunk[4:], "little")
        begin = file.tell()
        if chunk.startswith(b"fmt "):
            frame_bytes = max(1, int.from_bytes(file.read(14)[12:], "little"))
        if chunk.startswith(b"data"):
            # A program that writes to a pipe cannot know the length and puts the largest number there.
            if length < 0x7FFFF000 and begin + length > size:
                raise _truncated(path, length // frame_bytes, (size - begin) // frame_bytes)
            return
        file.seek(begin + length + length % 2)


def _truncated(path: Path, declared: int, present: int) -> CorpusError:
    return CorpusError(f"{path}: truncated: its header promises {declared} samples, it holds {present}; copy it again")


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """Join the first few items, and say how many more there are."""
    items = list(items)
    more = [f"and {len(items) - _SHOWN} more"] if len(items) > _SHOWN else []
    return separator.join(items[:_SHOWN] + more)
