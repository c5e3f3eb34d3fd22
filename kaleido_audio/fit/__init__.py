"""The K-matrix nearest to a given matrix."""

from kaleido_audio.fit.hierarchical import butterfly_factor
from kaleido_audio.fit.nearest import Fit, relative_error, to_kmatrix

__all__ = ["Fit", "butterfly_factor", "relative_error", "to_kmatrix"]
