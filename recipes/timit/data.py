"""Utterances in memory, batches of similar lengths, frame labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from recipes.timit.corpus import Corpus, Utterance, read_audio, to_int16
from recipes.timit.phones import IGNORE, frame_states, transcript_48


@dataclass(frozen=True)
class Batch:
    """Padded utterances.

    Shape:
        waveform ``(batch, time)`` float32, zeros behind each length; lengths ``(batch,)`` samples; labels
        ``(batch, frames)`` state ids, IGNORE where there is none; index ``(batch,)`` positions in the dataset.
    """

    waveform: Tensor
    lengths: Tensor
    labels: Tensor
    index: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on another device."""
        return Batch(*(t.to(device) for t in (self.waveform, self.lengths, self.labels, self.index)))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory, for asynchronous copies to a GPU."""
        return Batch(*(t.pin_memory() for t in (self.waveform, self.lengths, self.labels, self.index)))


class SpeechDataset(Dataset):
    """One split in memory: 16-bit samples (115 MB an hour) and a state label a frame.

    Args:
        utterances: of one split, in a fixed order.
        inventory: phones of the 48 set that have states, in order of their ids.
        sample_rate: Hz, of the files.
        hop_length: samples between frames.
        progress: show a bar while reading.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        inventory: Sequence[str],
        *,
        sample_rate: int,
        hop_length: int,
        progress: bool = False,
        title: str = "Reading audio",
    ) -> None:
        self.utterances = list(utterances)
        self.waveforms: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        for utterance in track(self.utterances, description=title, disable=not progress, transient=True):
            audio = read_audio(utterance.wav, sample_rate=sample_rate)
            self.waveforms.append(to_int16(audio))
            n_frames = len(audio) // hop_length + 1
            self.labels.append(frame_states(utterance.segments, n_frames, hop_length, inventory))

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray, np.ndarray]:
        return index, self.waveforms[index], self.labels[index]

    @property
    def lengths(self) -> np.ndarray:
        """Samples of each utterance, ``(len(self),)``."""
        return np.array([len(w) for w in self.waveforms])


def collate(items: Sequence[tuple[int, np.ndarray, np.ndarray]]) -> Batch:
    """Pad utterances to the longest of them."""
    indices, waveforms, labels = zip(*items, strict=True)
    waveform = torch.zeros(len(items), max(len(w) for w in waveforms))
    padded_labels = torch.full((len(items), max(len(row) for row in labels)), IGNORE, dtype=torch.int64)
    for i, (w, row) in enumerate(zip(waveforms, labels, strict=True)):
        waveform[i, : len(w)] = torch.from_numpy(w).float() / 32768.0
        padded_labels[i, : len(row)] = torch.from_numpy(np.asarray(row, dtype=np.int64))
    lengths = torch.tensor([len(w) for w in waveforms])
    return Batch(waveform, lengths, padded_labels, torch.tensor(indices))


class LengthBatches(Sampler[list[int]]):
    """Batches of utterances of similar length, in an order that the seed and the epoch determine.

    Utterances are shuffled, sorted by length within pools of 16 batches, cut into batches, and the batches
    shuffled. Processes of one training share that order: process r of w takes every w-th batch, and the order is
    filled up from its start so that all take equally many. Without ``seed`` the order is by length, and every
    w-th utterance is process r's.

    Args:
        lengths: of all utterances.
        batch_size: utterances a batch.
        seed: of the order, with ``epoch``; None for a fixed order, each utterance once in all processes together.
        epoch: number of the pass.
        rank, world: this process and the number of them.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if seed is None:
            order = np.argsort(lengths, kind="stable")[rank::world]
            self.batches = _cut(order, batch_size)
            return
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(lengths))
        pools = [order[i : i + 16 * batch_size] for i in range(0, len(order), 16 * batch_size)]
        order = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
        batches = _cut(order, batch_size)
        batches = [batches[i] for i in rng.permutation(len(batches))]
        batches += batches[: -len(batches) % world]
        self.batches = batches[rank::world]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def _cut(order: np.ndarray, size: int) -> list[list[int]]:
    return [order[i : i + size].tolist() for i in range(0, len(order), size)]


def loader(dataset: SpeechDataset, batches: LengthBatches, *, pin_memory: bool = False) -> DataLoader:
    """Batches of a dataset; its samples are in memory, so no worker processes are needed."""
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, pin_memory=pin_memory)


def phone_inventory(corpus: Corpus) -> tuple[str, ...]:
    """The phones of the 48 set that occur in train, sorted: all 48 in TIMIT, fewer in a stand-in."""
    return tuple(sorted({phone for utterance in corpus.train for phone in transcript_48(utterance.segments)}))


def transcript(utterance: Utterance, inventory: Sequence[str]) -> list[int]:
    """The phone ids of an utterance; phones outside the inventory are left out, as q is."""
    ids = {phone: i for i, phone in enumerate(inventory)}
    return [ids[phone] for phone in transcript_48(utterance.segments) if phone in ids]
