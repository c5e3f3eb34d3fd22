"""K-matrix layers for any network, their rivals, swapping layers in a model, and parameter groups."""

from kaleido_audio.nn.linear import Hadamard, KConv1x1, KLinear
from kaleido_audio.nn.permutation import KPermutation
from kaleido_audio.nn.replace import Replacement, replace_linear, to_dense
from kaleido_audio.nn.rivals import (
    CirculantLinear,
    DenseLinear,
    KroneckerLinear,
    LowRankLinear,
    MonarchLinear,
    SparseLinear,
    ToeplitzLinear,
    match_parameters,
)
from kaleido_audio.nn.structured import StructuredLinear
from kaleido_audio.nn.training import param_groups

__all__ = [
    "CirculantLinear",
    "DenseLinear",
    "Hadamard",
    "KConv1x1",
    "KLinear",
    "KPermutation",
    "KroneckerLinear",
    "LowRankLinear",
    "MonarchLinear",
    "Replacement",
    "SparseLinear",
    "StructuredLinear",
    "ToeplitzLinear",
    "match_parameters",
    "param_groups",
    "replace_linear",
    "to_dense",
]
