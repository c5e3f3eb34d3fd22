"""Learnable spectrograms that start as exact copies of torchaudio's and Kaldi's: thin modules over `functional`."""

from kaleido_audio.transforms.compression import COMPRESSIONS, PCEN, Compression, FlooredLogarithm
from kaleido_audio.transforms.dense import DenseTransform
from kaleido_audio.transforms.filterbank import Filterbank
from kaleido_audio.transforms.kaldi import KFbank
from kaleido_audio.transforms.mel import KMelSpectrogram, MelFrontEnd, mel_parts
from kaleido_audio.transforms.spectrograms import KSpectrogram, Spectrogram
from kaleido_audio.transforms.streaming import Stream

__all__ = [
    "COMPRESSIONS",
    "PCEN",
    "Compression",
    "DenseTransform",
    "Filterbank",
    "FlooredLogarithm",
    "KFbank",
    "KMelSpectrogram",
    "KSpectrogram",
    "MelFrontEnd",
    "Spectrogram",
    "Stream",
    "mel_parts",
]
