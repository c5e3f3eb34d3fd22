"""Parameter groups: K-matrices and learned permutations apart from the rest."""

import torch

from kaleido_audio import KMatrix
from kaleido_audio.nn import KConv1x1, KLinear, KPermutation, LowRankLinear, param_groups


def test_kmatrices_are_a_group_of_their_own() -> None:
    shared = KMatrix(8)
    frozen = KMatrix(8)
    frozen.weight.requires_grad_(False)
    model = torch.nn.ModuleList([shared, torch.nn.Linear(8, 3), shared, frozen])
    k_group, rest = param_groups(model, 0.1, k_lr_multiplier=0.25, weight_decay=0.3)
    assert k_group["params"] == [shared.weight] and k_group["lr"] == 0.025 and k_group["weight_decay"] == 0.0
    assert [p.shape for p in rest["params"]] == [(3, 8), (3,)] and rest["weight_decay"] == 0.3
    torch.optim.SGD([k_group, rest])
    assert [g["name"] for g in param_groups(torch.nn.Linear(2, 2), 0.1)] == ["rest"]


def test_layers_keep_their_biases_in_the_rest() -> None:
    linear, conv, permutation, low_rank = KLinear(8, 8), KConv1x1(8, 4), KPermutation(8), LowRankLinear(8, 8, rank=1)
    model = torch.nn.ModuleList([linear, conv, permutation, low_rank])
    k_group, rest = param_groups(model, 0.1)
    assert {id(p) for p in k_group["params"]} == {
        id(linear.kmatrix.weight),
        id(conv.linear.kmatrix.weight),
        id(permutation.theta),
    }
    assert {id(p) for p in rest["params"]} == {id(linear.bias), id(conv.bias), *map(id, low_rank.parameters())}


def test_every_parameter_of_a_kmatrix_counts_whatever_its_name() -> None:
    k = KMatrix(8)
    k.diagonal = torch.nn.Parameter(torch.ones(8))
    (group,) = param_groups(k, 0.1)
    assert {id(p) for p in group["params"]} == {id(k.weight), id(k.diagonal)}
