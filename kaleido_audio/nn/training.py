"""Training networks that contain K-matrices: parameter groups for the optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from kaleido_audio.kmatrix import KMatrix
from kaleido_audio.nn.permutation import KPermutation


def param_groups(
    model: nn.Module, lr: float, *, k_lr_multiplier: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Two optimizer groups: K-matrices with their own learning rate and no weight decay, and the rest.

    The first group has every parameter of a `KMatrix` or `KPermutation`. The bias of a `KLinear` is in the rest.

    Args:
        model: any module; parameters that need no gradient are left out.
        lr: learning rate of the rest.
        k_lr_multiplier: learning rate of the K-matrices, as a multiple of ``lr``. The paper searched 0.25 to 4.
        weight_decay: of the rest. Decay would pull the 2 x 2 blocks, whose products set the gain, towards zero.

    Returns:
        groups for any `torch.optim` optimizer, each with a ``"name"``: "k_matrices" (where there are any) and
        "rest".

    >>> groups = param_groups(nn.Sequential(KMatrix(8), nn.Linear(8, 2)), 1e-3, k_lr_multiplier=0.5)
    >>> [(group["name"], group["lr"]) for group in groups]
    [('k_matrices', 0.0005), ('rest', 0.001)]
    """
    k_parameters = {
        id(parameter): parameter
        for module in model.modules()
        if isinstance(module, (KMatrix, KPermutation))
        for parameter in module.parameters()
        if parameter.requires_grad
    }
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in k_parameters]
    groups = [
        {
            "name": "k_matrices",
            "params": list(k_parameters.values()),
            "lr": lr * k_lr_multiplier,
            "weight_decay": 0.0,
        },
        {"name": "rest", "params": rest, "lr": lr, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]
