"""Learnable spectrograms that start as exact copies of torchaudio's: thin modules over `functional`."""

from kaleido_audio.transforms.compression import COMPRESSIONS, PCEN, Compression
from kaleido_audio.transforms.filterbank import Filterbank
from kaleido_audio.transforms.mel import KMelSpectrogram, MelFrontEnd, mel_parts
from kaleido_audio.transforms.spectrograms import KSpectrogram, Spectrogram

__all__ = [
    "COMPRESSIONS",
    "PCEN",
    "Compression",
    "Filterbank",
    "KMelSpectrogram",
    "KSpectrogram",
    "MelFrontEnd",
    "Spectrogram",
    "mel_parts",
]
