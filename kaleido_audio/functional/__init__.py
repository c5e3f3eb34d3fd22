"""The audio maths of the front ends, stateless: framing, spectra, mel filterbanks, compression.

Time is the last dimension of waveforms and features. A function that takes ``lengths`` treats each item of a
padded batch as if it were alone.
"""

from kaleido_audio.functional.checks import check_at_least, check_choice
from kaleido_audio.functional.compression import (
    db_compression,
    log10_compression,
    log_compression,
    pcen,
    pcen_level,
    pcen_of_level,
    pcen_smoothing,
)
from kaleido_audio.functional.framing import PAD_MODES, check_lengths, frame, frame_counts, mask_frames
from kaleido_audio.functional.kaldi import (
    KALDI_WINDOWS,
    kaldi_frame_counts,
    kaldi_frames,
    kaldi_mel_filterbank,
    kaldi_window,
    pre_emphasize_frames,
)
from kaleido_audio.functional.mel import MEL_SCALES, apply_filterbank, hz_to_mel, mel_filterbank, mel_to_hz, nonnegative
from kaleido_audio.functional.spectrograms import (
    NORMALIZATIONS,
    fuses_k_mel,
    k_mel_spectrogram,
    k_spectrogram,
    magnitude_power,
    power_of_squared,
    spectrogram,
    widened,
)

__all__ = [
    "KALDI_WINDOWS",
    "MEL_SCALES",
    "NORMALIZATIONS",
    "PAD_MODES",
    "apply_filterbank",
    "check_at_least",
    "check_choice",
    "check_lengths",
    "db_compression",
    "frame",
    "frame_counts",
    "fuses_k_mel",
    "hz_to_mel",
    "k_mel_spectrogram",
    "k_spectrogram",
    "kaldi_frame_counts",
    "kaldi_frames",
    "kaldi_mel_filterbank",
    "kaldi_window",
    "log10_compression",
    "log_compression",
    "magnitude_power",
    "mask_frames",
    "mel_filterbank",
    "mel_to_hz",
    "nonnegative",
    "pcen",
    "pcen_level",
    "pcen_of_level",
    "pcen_smoothing",
    "power_of_squared",
    "pre_emphasize_frames",
    "spectrogram",
    "widened",
]
