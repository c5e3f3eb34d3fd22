"""Swapping dense layers of a model for structured ones, and back."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kaleido_audio.nn.linear import KConv1x1, KLinear
from kaleido_audio.nn.structured import StructuredLinear
from kaleido_audio.ops import no_autocast

Dense = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Structured = StructuredLinear | KConv1x1
Select = str | Iterable[str] | Callable[[str, nn.Module], bool] | None
_COMPILED = "was compiled by itself, and what was compiled would go on with the old layer: compile after the swap"
_SPATIAL_DIMS: dict[type, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@runtime_checkable
class HasDenseForm(Protocol):
    """A module that has a K-matrix and can do without: the spectrograms of `kaleido_audio.transforms`."""

    def dense_form(self) -> nn.Module:
        """A copy with a dense matrix."""


@dataclass(frozen=True)
class ReplacedLayer:
    """What became of one layer.

    Attributes:
        name: of the layer in the model; the first one where it has several.
        shape: rows and columns of its matrix.
        parameters_before: number of parameters, bias included.
        parameters_after: the same of the new layer.
        relative_error: ``|W - K| / |W|`` in the Frobenius norm where K was fitted to W, else None.
    """

    name: str
    shape: tuple[int, int]
    parameters_before: int
    parameters_after: int
    relative_error: float | None = None


@dataclass(frozen=True)
class Replacement:
    """What `replace_linear` did; ``print`` it for a table.

    Attributes:
        layers: the layers replaced, in the model's order.
        skipped: selected layers that were left alone, by name, and why.
    """

    layers: tuple[ReplacedLayer, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Parameters of the layers replaced, before."""
        return sum(layer.parameters_before for layer in self.layers)

    @property
    def parameters_after(self) -> int:
        """Parameters of the layers replaced, after."""
        return sum(layer.parameters_after for layer in self.layers)

    def __str__(self) -> str:
        header = ("layer", "shape", "before", "after", "relative error")
        rows = [
            (
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                f"{layer.parameters_before:,}",
                f"{layer.parameters_after:,}",
                "-" if layer.relative_error is None else f"{layer.relative_error:.2e}",
            )
            for layer in self.layers
        ]
        rows.append(("total", "", f"{self.parameters_before:,}", f"{self.parameters_after:,}", ""))
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in (header, *rows)
        ]
        return "\n".join([*lines, *(f"left alone: {name}: {reason}" for name, reason in self.skipped.items())])


def replace_linear(
    model: nn.Module,
    select: Select = None,
    *,
    layer: type[StructuredLinear] = KLinear,
    init: str | None = "fit",
    fit_options: Mapping[str, Any] | None = None,
    convolutions: bool = False,
    **options: Any,
) -> Replacement:
    """Swap `torch.nn.Linear` layers of a model for K-matrix layers, in place.

    Biases, device, dtype, training mode and ``requires_grad`` are kept; a layer that the model uses in several
    places stays shared. Nothing is changed where an error is raised. Left alone, with the reason in the report:
    subclasses of `torch.nn.Linear` (the output projection of `torch.nn.MultiheadAttention` is one), layers with
    hooks or a ``forward`` of their own, layers that were compiled by themselves, and layers whose weight is also used
    elsewhere (tied to an embedding).

    Args:
        model: any module that contains the layers; to replace a lone layer, build its successor yourself.
        select: which layers. None: those that get fewer parameters. A glob pattern for their names, e.g.
            ``"encoder.*.linear?"``. A list of names, which must all be replaceable. Or a function of name and module.
        layer: class of the new layers: `KLinear` or another `StructuredLinear`.
        init: ``"fit"``: start from the K-matrix nearest to the layer's matrix that `kaleido_audio.fit.to_kmatrix`
            finds, some seconds a layer. Another string is the ``init`` option of ``layer``; None leaves it at its
            default.
        fit_options: of `kaleido_audio.fit.to_kmatrix`, e.g. ``{"sweeps": 10}``.
        convolutions: whether to swap convolutions of kernel size 1 for `KConv1x1` too; ``layer`` is then `KLinear`.
        **options: of the new layers, e.g. ``width=2``.

    Returns:
        the layers replaced, their parameters before and after, and errors of fit.

    Raises:
        ValueError: nothing was replaced, a listed name cannot be, or options contradict each other.

    >>> model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    >>> print(replace_linear(model, init="orthogonal"))
    layer      shape  before  after  relative error
    0      256 x 256  65,792  8,448               -
    total             65,792  8,448
    left alone: 2: would grow from 2,570 to 8,202 parameters
    """
    if layer is not KLinear and init == "fit":
        raise ValueError(f"init='fit' fits K-matrices: for {layer.__name__} use init=None")
    if layer is not KLinear and convolutions:
        raise ValueError(f"convolutions become KConv1x1, a K-matrix: they do not go with layer={layer.__name__}")
    taken = {"bias", "dtype", "device", "in_features", "out_features"} & set(options)
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))}: new layers have those of the layers that they replace")
    if fit_options and init != "fit":
        raise ValueError(f"fit_options are for init='fit', got init={init!r}")
    if init == "fit" and (options.get("constraint") is not None or options.get("tied")):
        raise ValueError("init='fit' fits free coefficients: leave constraint and tied out, or use another init")
    candidates = _candidates(model, convolutions)
    chosen = _selected(candidates, select)
    owners, compiled = _owners(model), _compiled(model)
    skipped: dict[str, str] = {}
    for name, module in chosen.items():
        reason = _obstacle(module, owners, compiled) or _misfit(module, layer, options, may_grow=select is not None)
        if reason is not None:
            skipped[name] = reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
    listed = not (select is None or isinstance(select, str) or callable(select))
    if skipped and listed:
        raise ValueError(f"cannot replace {reasons}")
    if len(skipped) == len(chosen):
        raise ValueError(f"no layer to replace. Candidates: {_listed(candidates)}. {reasons}".rstrip(". "))

    successors: dict[nn.Module, nn.Module] = {}
    layers: list[ReplacedLayer] = []
    for name, module in chosen.items():
        if name in skipped:
            continue
        successor, error = _successor(module, layer, init, fit_options or {}, options)
        successors[module] = successor
        shape = (module.weight.shape[0], module.weight.shape[1])
        layers.append(ReplacedLayer(name, shape, _count(module), _count(successor), error))
    _swap(model, successors)
    return Replacement(tuple(layers), skipped)


def to_dense(model: nn.Module) -> nn.Module:
    """Swap structured layers for dense ones with the same matrix: to export a model, or where dense is faster.

    Every `StructuredLinear` becomes a `torch.nn.Linear` and every `KConv1x1` a `torch.nn.Conv1d`,
    `torch.nn.Conv2d` or `torch.nn.Conv3d`. A learnable spectrogram, by itself or in a front end, keeps its class and
    has a `kaleido_audio.transforms.DenseTransform` in the place of its K-matrix, in real arithmetic. Biases, device,
    dtype, training mode and ``requires_grad`` are kept.

    Args:
        model: changed in place.

    Returns:
        ``model``; its dense layer where it is itself one of these layers.

    Raises:
        ValueError: a layer that has hooks or a ``forward`` of its own, was compiled by itself, or shares parameters
            with another module: its successor would not. Nothing is changed then.

    >>> to_dense(nn.Sequential(KLinear(64, 32), nn.ReLU()))
    Sequential(
      (0): Linear(in_features=64, out_features=32, bias=True)
      (1): ReLU()
    )
    """
    layers = _outermost(model)
    owner: dict[Tensor, str] = {}
    replaced = {part for module in layers for part in module.modules()}
    for name, module in model.named_modules():
        if module not in replaced:
            owner.update((parameter, name) for parameter in module.parameters(recurse=False))
    compiled = _compiled(model)
    for module, name in layers.items():
        if module in compiled:
            raise ValueError(f"{name} {_COMPILED}")
        plain = (StructuredLinear.forward, KConv1x1.forward)
        own = isinstance(module, Structured) and type(module).forward not in plain
        if own or "forward" in vars(module):
            raise ValueError(f"{name} is a {type(module).__name__} with a forward() of its own, which would be lost")
        for part in module.modules():
            if _has_hooks(part):
                raise ValueError(f"{name} has hooks, which a dense layer would not have: remove them first")
        for parameter in module.parameters():
            if owner.setdefault(parameter, name) != name:
                raise ValueError(f"{owner[parameter]} and {name} share parameters, which dense layers would not")
    successors: dict[nn.Module, nn.Module] = {module: _dense(module) for module in layers}
    if model in successors:
        return successors[model]
    _swap(model, successors)
    return model


def _candidates(model: nn.Module, convolutions: bool) -> dict[Dense, list[str]]:
    """Layers that are or may be replaceable, with all their names."""
    candidates: dict[Dense, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if name and (isinstance(module, nn.Linear) or (convolutions and _is_pointwise(module))):
            candidates.setdefault(module, []).append(name)
    return candidates


def _is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    """Whether a module is a convolution that only mixes channels."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return False
    ones = all(side == 1 for side in (*module.kernel_size, *module.stride))
    # "valid" and "same" both mean none for a kernel of size 1.
    unpadded = isinstance(module.padding, str) or not any(module.padding)
    return ones and unpadded and module.groups == 1


def _selected(candidates: dict[Dense, list[str]], select: Select) -> dict[str, Dense]:
    """The candidates that the user means, by their first name."""
    if select is None:
        return {names[0]: module for module, names in candidates.items()}
    if isinstance(select, str):
        pattern = select
        return {
            names[0]: module
            for module, names in candidates.items()
            if any(fnmatch.fnmatchcase(name, pattern) for name in names)
        }
    if callable(select):
        return {names[0]: module for module, names in candidates.items() if any(select(name, module) for name in names)}
    wanted = set(select)
    unknown = wanted - {name for names in candidates.values() for name in names}
    if unknown:
        raise ValueError(f"no such layer: {', '.join(sorted(unknown))}. Candidates: {_listed(candidates)}")
    return {names[0]: module for module, names in candidates.items() if wanted & set(names)}


def _listed(candidates: dict[Dense, list[str]]) -> str:
    names = [names[0] for names in candidates.values()]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "") or "none"


def _owners(model: nn.Module) -> dict[Tensor, int]:
    """How many modules hold each parameter."""
    owners: dict[Tensor, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[parameter] = owners.get(parameter, 0) + 1
    return owners


def _compiled(model: nn.Module) -> set[nn.Module]:
    """Modules that `torch.compile` was given, and those that it made of them."""
    made = [module for module in model.modules() if "_orig_mod" in module._modules]
    return {part for module in made for part in (module, module.get_submodule("_orig_mod"))}


def _obstacle(module: Dense, owners: dict[Tensor, int], compiled: set[nn.Module]) -> str | None:
    """Why a layer cannot be replaced without changing what the model does, or None."""
    if type(module) is not nn.Linear and type(module) not in _SPATIAL_DIMS:
        return f"is a {type(module).__name__}, no plain layer: its class or owner may use the weight in another way"
    if module in compiled:
        return _COMPILED
    if "forward" in vars(module):
        return "has a forward() of its own, which the new layer would not have"
    if _has_hooks(module):
        return "has hooks, which the new layer would not have"
    if any(owners[parameter] > 1 for parameter in module.parameters()):
        return "shares a parameter with another layer"
    return None


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _outermost(model: nn.Module) -> dict[nn.Module, str]:
    """Modules with a dense form that are no part of another such, with their first names."""
    layers: dict[nn.Module, str] = {}
    inner: set[nn.Module] = set()
    for name, module in model.named_modules():
        has_dense_form = isinstance(module, Structured | HasDenseForm)
        if has_dense_form and module not in inner:
            layers[module] = name or "the model"
            inner.update(module.modules())
    return layers


def _misfit(module: Dense, layer: type[StructuredLinear], options: dict[str, Any], *, may_grow: bool) -> str | None:
    """Why there is no such layer of these sides, or none with fewer parameters; or None."""
    try:
        with torch.device("meta"):
            after = _count(_new(module, layer, options))
    except ValueError as error:
        return f"cannot be a {layer.__name__}: {error}"
    before = _count(module)
    return None if may_grow or after < before else f"would grow from {before:,} to {after:,} parameters"


def _new(module: Dense, layer: type[StructuredLinear], options: dict[str, Any]) -> Structured:
    rows, columns = module.weight.shape[:2]
    kind: Any = layer
    if type(module) in _SPATIAL_DIMS:
        kind = KConv1x1
        options = {**options, "spatial_dims": _SPATIAL_DIMS[type(module)]}
    return kind(columns, rows, module.bias is not None, dtype=module.weight.dtype, **options)


def _successor(
    module: Dense,
    layer: type[StructuredLinear],
    init: str | None,
    fit_options: Mapping[str, Any],
    options: dict[str, Any],
) -> tuple[Structured, float | None]:
    """The new layer, and the relative error where it is fitted."""
    error = None
    if init == "fit":
        from kaleido_audio import fit

        weight = module.weight.detach().flatten(1).to(torch.promote_types(module.weight.dtype, torch.float32))
        sizes = {name: options[name] for name in ("width", "expansion") if name in options}
        fitted = fit.to_kmatrix(weight, **sizes, **fit_options)
        error = fitted.relative_error
        options = {**options, "init": fitted.kmatrix}
    elif init is not None:
        options = {**options, "init": init}
    successor = _new(module, layer, options).to(module.weight.device).train(module.training)
    successor.requires_grad_(module.weight.requires_grad)
    _copy_bias(module.bias, successor.bias)
    return successor, error


def _dense(module: nn.Module) -> nn.Module:
    tensor = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
    # A parameter that can be trained and is as precise as the layer, wherever this is called.
    with torch.inference_mode(False), torch.no_grad(), no_autocast(tensor):
        if isinstance(module, HasDenseForm):
            return module.dense_form()
        assert isinstance(module, Structured)
        dense: Any
        if isinstance(module, KConv1x1):
            kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[module.spatial_dims - 1]
            dense = kind(module.in_channels, module.out_channels, 1, bias=module.bias is not None, device="meta")
        else:
            dense = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
        weight = module.weight
        dense.to_empty(device=weight.device).to(weight.dtype).train(module.training)
        dense.weight.copy_(weight)
        dense.weight.requires_grad_(any(p.requires_grad for p in module.parameters() if p is not module.bias))
        _copy_bias(module.bias, dense.bias)
        return dense


@torch.no_grad()
def _copy_bias(source: Tensor | None, target: Tensor | None) -> None:
    if source is not None and target is not None:
        target.copy_(source).requires_grad_(source.requires_grad)


def _swap(model: nn.Module, successors: dict[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in successors:
                parent._modules[name] = successors[child]
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            _choose_path(module)
        elif isinstance(module, nn.TransformerEncoder):
            _choose_nesting(module)


def _choose_path(layer: nn.TransformerEncoderLayer) -> None:
    """PyTorch's fast path multiplies by the layers' weights, which a structured layer would have to make each time."""
    structured = isinstance(layer.linear1, Structured) or isinstance(layer.linear2, Structured)
    kinds: tuple[tuple[Any, Any], ...] = ((F.relu, nn.ReLU), (F.gelu, nn.GELU))
    given: Any = layer.activation
    known = [number for number, (f, kind) in enumerate(kinds, 1) if given is f or isinstance(given, kind)]
    # An activation that it does not know keeps PyTorch from that path.
    layer.activation_relu_or_gelu = known[0] if known and not structured else 0


def _choose_nesting(encoder: nn.TransformerEncoder) -> None:
    """Of padded input an encoder makes nested tensors, which layers take on the fast path only."""
    state: dict[str, Any] = encoder.__dict__
    if any(isinstance(module, Structured) for module in encoder.modules()):
        state.setdefault("_nested_when_dense", encoder.use_nested_tensor)
        encoder.use_nested_tensor = False
    elif "_nested_when_dense" in state:
        encoder.use_nested_tensor = state.pop("_nested_when_dense")


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
