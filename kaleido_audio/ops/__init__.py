"""`butterfly_multiply`, the operator under every K-matrix."""

from kaleido_audio.ops.multiply import (
    backend,
    butterfly_filterbank,
    butterfly_multiply,
    butterfly_outputs,
    butterfly_power_spectrum,
    has_filterbank,
    no_autocast,
    to_dense,
)
from kaleido_audio.ops.native import cpu_capability

__all__ = [
    "backend",
    "butterfly_filterbank",
    "butterfly_multiply",
    "butterfly_outputs",
    "butterfly_power_spectrum",
    "cpu_capability",
    "has_filterbank",
    "no_autocast",
    "to_dense",
]
