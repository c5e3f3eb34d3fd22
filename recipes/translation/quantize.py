"""int8: what a user of a dense model would try first to make it faster on a CPU."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from recipes.translation.model import Translator


class Unavailable(RuntimeError):
    """Something that this torch or processor cannot do."""


def quantized(model: Translator) -> Translator:
    """A copy whose dense linear layers multiply in int8, with activations quantized on the fly; K-matrices stay.

    Raises:
        Unavailable: torch has no kernels for it here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its deprecation in favour of torchao
        try:
            from torch.ao.quantization import quantize_dynamic

            copy: Translator = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
            copy.encode(torch.ones(1, 1, dtype=torch.int64))
        except (ImportError, RuntimeError, NotImplementedError) as error:
            raise Unavailable(f"no dynamic quantization here ({str(error).splitlines()[0]})") from error
    return copy
