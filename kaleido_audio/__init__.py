"""A learnable audio front end on Kaleidoscope matrices, and K-matrix layers for any network."""

from kaleido_audio import exact, fit, functional, nn, ops, transforms
from kaleido_audio.kmatrix import KMatrix

__version__ = "0.1.0"
__all__ = ["KMatrix", "exact", "fit", "functional", "nn", "ops", "transforms"]
