"""Writing a corpus in TIMIT's layout: what the stand-ins built by ``prepare`` are written with.

The layout is ``TRAIN/DR1/<SPEAKER>/<SENTENCE>.WAV`` (NIST SPHERE, 16-bit PCM), ``.PHN`` (``begin end phone``
rows, in samples) and ``.TXT`` (the words) for the train speakers, ``TEST/DR1/...`` for the dev and test
speakers, and a ``corpus.json`` that names the corpus, its speakers by split and its counts, so that a number
measured on it can never be read as TIMIT's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile

from recipes.common.files import replace_folder
from recipes.timit.corpus import LABELS, SHORTEST, SPLITS, CorpusError, Segment, segment_problem

_FOLDERS = {"train": "TRAIN", "dev": "TEST", "test": "TEST"}
_SPEAKER = re.compile(r"[A-Za-z0-9-]+")
_SENTENCE = re.compile(r"[A-Za-z0-9_-]+")


class CorpusWriter:
    """Write a corpus in TIMIT's layout, all or nothing.

    Everything goes into a hidden folder beside ``root``, which is renamed to ``root`` by :meth:`close`: a run
    that is killed half way leaves no half corpus behind (only that hidden folder, ``.<name>.<id>.partial``,
    which may be deleted). As a context manager it closes at the end of the block, or removes the hidden
    folder on an exception.

    Args:
        root: folder to make. It must not exist yet, or be empty, unless ``overwrite``.
        name: the corpus's name, which results carry. It must not contain "TIMIT".
        labels: where the phone labels come from: "exact" (a synthesizer's own times), "pseudo-labels" (an
            aligner's) or "human".
        sample_rate: in Hz.
        bandwidth: highest useful frequency of the audio, in Hz; at most half the sample rate.
        source: one line on where the audio and the labels come from, for ``corpus.json``.
        seed: the seed the corpus was made with, if any.
        overwrite: replace ``root`` if it is a corpus that was written by this class (it has a
            ``corpus.json``). Any other folder is left alone, so that real data cannot be lost to a wrong
            path.

    Raises:
        CorpusError: if ``root`` is in the way, or a value is not one of those above.

    Example:
        >>> import tempfile
        >>> from recipes.timit.corpus import Segment, load_corpus
        >>> tone = 0.1 * np.sin(0.1 * np.arange(1600))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     root = Path(folder) / "tones"
        ...     options = {"labels": "exact", "bandwidth": 8000, "source": "a sine"}
        ...     with CorpusWriter(root, name="tones", **options) as writer:
        ...         for split, speaker in (("train", "mtra0"), ("dev", "fdev0"), ("test", "ftst0")):
        ...             writer.add(split=split, speaker=speaker, sentence="sx1", waveform=tone,
        ...                        segments=[Segment(0, 800, "h#"), Segment(800, 1600, "iy")], text="eee")
        ...     [utterance.key for utterance in load_corpus(root).train]
        ['mtra0_sx1']
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        name: str,
        labels: str,
        sample_rate: int = 16000,
        bandwidth: float,
        source: str,
        seed: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        if not name or "timit" in name.lower():
            raise CorpusError(f"corpus name {name!r}: give a name without 'TIMIT', which is kept for LDC's own corpus")
        if labels not in LABELS:
            raise CorpusError(f"labels {labels!r}: expected one of {', '.join(LABELS)}")
        if sample_rate <= 0 or not 0 < bandwidth <= sample_rate / 2:
            raise CorpusError(
                f"sample_rate {sample_rate} Hz, bandwidth {bandwidth} Hz: expected 0 < bandwidth <= rate / 2"
            )
        _check_free(self.root, overwrite)
        self.sample_rate = sample_rate
        self._overwrite = overwrite
        self._about: dict[str, Any] = {
            "name": name,
            "labels": labels,
            "sample_rate": sample_rate,
            "bandwidth": float(bandwidth),
            "source": source,
            "seed": seed,
        }
        self._closed = False
        self._splits: dict[str, str] = {}
        self._keys: set[tuple[str, str]] = set()
        self._utterances = dict.fromkeys(SPLITS, 0)
        self.root.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self.root.with_name(f".{self.root.name}.{uuid.uuid4().hex[:8]}.partial")
        self._partial.mkdir()

    def add(
        self,
        *,
        split: str,
        speaker: str,
        sentence: str,
        waveform: np.ndarray,
        segments: Sequence[Segment],
        text: str,
    ) -> None:
        """Write one utterance.

        Args:
            split: "train", "dev" or "test"; every utterance of a speaker is in the same one.
            speaker: letters, digits and hyphens; case does not matter.
            sentence: letters, digits, hyphens and underscores, once per speaker; not "sa1" or "sa2", which
                TIMIT's loaders drop.
            waveform: samples, ``(n_samples,)``: floats in [-1, 1], or int16; at least 25 ms, not all zero.
            segments: the phones, in order, without overlap, inside the audio; gaps are allowed.
            text: the words, on one line.

        Raises:
            CorpusError: if any of these does not hold; the message names the speaker and the sentence.
        """
        speaker, sentence = speaker.lower(), sentence.lower()
        where = f"utterance {speaker}_{sentence}"
        if self._closed:
            raise CorpusError(f"{where}: {self.root} is closed; make a new CorpusWriter")
        if split not in SPLITS:
            raise CorpusError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}")
        if not _SPEAKER.fullmatch(speaker):
            raise CorpusError(f"{where}: speaker {speaker!r}: use letters, digits and hyphens")
        if not _SENTENCE.fullmatch(sentence) or sentence in ("sa1", "sa2"):
            raise CorpusError(f"{where}: sentence {sentence!r}: use letters, digits, - and _, and not sa1 or sa2")
        if self._splits.get(speaker, split) != split:
            raise CorpusError(f"{where}: speaker {speaker} is in {self._splits[speaker]} already, so not in {split}")
        if (speaker, sentence) in self._keys:
            raise CorpusError(f"{where}: added twice")
        samples = _to_int16(np.asarray(waveform), where)
        if len(samples) < SHORTEST * self.sample_rate or not samples.any():
            raise CorpusError(f"{where}: {len(samples)} samples, shorter than {1000 * SHORTEST:g} ms, or all zero")
        _check_segments(segments, len(samples), where)

        folder = self._partial / _FOLDERS[split] / "DR1" / speaker.upper()
        folder.mkdir(parents=True, exist_ok=True)
        stem = sentence.upper()
        soundfile.write(folder / f"{stem}.WAV", samples, self.sample_rate, format="NIST", subtype="PCM_16")
        rows = "".join(f"{s.begin} {s.end} {s.phone}\n" for s in segments)
        (folder / f"{stem}.PHN").write_text(rows, encoding="ascii")
        (folder / f"{stem}.TXT").write_text(f"0 {len(samples)} {' '.join(text.split())}\n", encoding="utf-8")
        self._splits[speaker] = split
        self._keys.add((speaker, sentence))
        self._utterances[split] += 1

    def close(self) -> Path:
        """Write ``corpus.json``, rename the folder into place and return it.

        Raises:
            CorpusError: if a split has no utterances, or ``root`` has come into being meanwhile. The hidden
                folder is removed.
        """
        if self._closed:
            return self.root
        empty = [split for split in SPLITS if not self._utterances[split]]
        try:
            if empty:
                raise CorpusError(f"{self.root}: no utterances in {' and '.join(empty)}; add some to each split")
            _check_free(self.root, self._overwrite)
            speakers = {split: sorted(s for s, its in self._splits.items() if its == split) for split in SPLITS}
            about = {**self._about, "speakers": speakers, "utterances": self._utterances}
            text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
            (self._partial / "corpus.json").write_text(text, encoding="utf-8")
            replace_folder(self._partial, self.root)
            self._closed = True
        except BaseException:
            self.discard()
            raise
        return self.root

    def discard(self) -> None:
        """Remove what was written so far, instead of :meth:`close`."""
        self._closed = True
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> CorpusWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close, or discard on an exception."""
        if kind is None:
            self.close()
        else:
            self.discard()


def _check_free(root: Path, overwrite: bool) -> None:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not overwrite:
        raise CorpusError(f"{root} exists already; remove it, choose another folder, or ask to overwrite it")
    if not (root / "corpus.json").is_file():
        raise CorpusError(f"{root} is not a corpus made by this recipe (no corpus.json), so it is not overwritten")


def _to_int16(waveform: np.ndarray, where: str) -> np.ndarray:
    if waveform.ndim != 1 or not len(waveform):
        raise CorpusError(f"{where}: expected a waveform of shape (n_samples,), not empty, got {waveform.shape}")
    if waveform.dtype == np.int16:
        return waveform
    if waveform.dtype.kind != "f":
        raise CorpusError(f"{where}: expected float or int16 samples, got {waveform.dtype}")
    peak = float(np.max(np.abs(waveform)))
    if not peak <= 1:
        raise CorpusError(f"{where}: samples must be finite and in [-1, 1], got a peak of {peak}; scale them first")
    return np.minimum(np.rint(waveform * 32768.0), 32767).astype(np.int16)


def _check_segments(segments: Sequence[Segment], n_samples: int, where: str) -> None:
    if not segments:
        raise CorpusError(f"{where}: no phone segments")
    previous = None
    for index, segment in enumerate(segments):
        problem = segment_problem(segment, previous, n_samples)
        if problem:
            raise CorpusError(f"{where}: segment {index} ({segment.phone}) {problem}")
        previous = segment
