"""Front ends to compare with: all take ``(waveform, lengths)`` and give features with time last."""

from kaleido_audio.frontends.linear import LinearMel, LinearSpectrogram
from kaleido_audio.frontends.mfsc import MFSC
from kaleido_audio.frontends.sincnet import SincNet

__all__ = ["MFSC", "LinearMel", "LinearSpectrogram", "SincNet"]
