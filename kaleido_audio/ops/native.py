"""The native kernels: loading the library, and what PyTorch has to know of its operators.

The operators ``torch.ops.kaleido_audio.*`` are defined in ``cpu/ops.cpp``, and ``cuda/ops.cu`` adds to them. Here they
get kernels for fake tensors, gradients and rules for vmap.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from kaleido_audio.ops.reference import multiply_by_stages, power_spectrum_by_stages

_LIBRARY = Path(__file__).with_name("kaleido_audio_cpu.so")
_NO_LIBRARY = (
    "kaleido_audio has no native kernels here ({reason}) and computes in plain PyTorch, 5 to 20 times slower. "
    "To build them, install it again where torch >= 2.11 is installed and a C++17 compiler is found "
    "(g++ or clang++, or set CXX); KALEIDO_NATIVE=1 makes that installation stop and say why where it cannot."
)

_CUDA_LIBRARY = Path(__file__).with_name("kaleido_audio_cuda.so")
_NO_CUDA_LIBRARY = (
    "kaleido_audio has no native kernels for GPUs here ({reason}) and computes in plain PyTorch, which is slower and "
    "takes more memory. To build them, install it again where CUDA's nvcc is found (or set NVCC); KALEIDO_CUDA=1 makes "
    "that installation stop and say why where it cannot."
)
LARGEST_SPECTRUM = 2048
"""Points of the largest spectrum that is one kernel on a GPU, in single precision; half of it in double."""

_OPERATORS = {
    "cpu": ("butterfly", "butterfly_no_grad", "butterfly_backward", "power_spectrum", "power_spectrum_backward",
            "cpu_capability"),
    "cuda": ("log_filterbank", "cuda_architectures"),
}  # fmt: skip

_devices: set[str] = set()
_functions: dict[str, Any] = {}
_missing: dict[str, str] = {}
_warned: set[str] = set()
_has_code_for: dict[int | None, bool] = {}
_ready = False
_butterfly_no_grad: Any = None
_is_compiling = torch.compiler.is_compiling
_is_tracing = torch.jit.is_tracing
_is_autocast_enabled = torch.is_autocast_enabled
_FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize


def is_native(x: Tensor) -> bool:
    """Whether a native kernel takes tensors like ``x`` now; says once if there is none for want of a library."""
    device = x.device
    if device.type in _devices and (device.type != "cuda" or _has_code(device.index)):
        # Forward-mode differentiation goes through the composite path, which has rules for it, and so does ONNX.
        return forward_ad._current_level < 0 and not goes_to_onnx()
    if device.type in _missing:
        _warn_once(device.type)
    return False


def _constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compiler.assume_constant_result`, which would import the whole compiler: half of this package's import."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant  # or torch.compile would take it for False
def goes_to_onnx() -> bool:
    """Whether `torch.onnx.export` is looking."""
    return torch.onnx.is_in_onnx_export()


@_constant
def _has_code(gpu: int | None) -> bool:
    """Whether the CUDA library was compiled for a GPU."""
    if gpu not in _has_code_for:
        _has_code_for[gpu] = True  # without a GPU, fake tensors alone come here
        if torch.cuda.is_available():
            known, own = torch.ops.kaleido_audio.cuda_architectures(), torch.cuda.get_device_capability(gpu)
            if not runs_on(known, own):
                _has_code_for[gpu] = False
                _missing["cuda"] = f"they were compiled for {known}, and this GPU has capability {own[0]}.{own[1]}"
    return _has_code_for[gpu]


def runs_on(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for some architectures runs on a GPU.

    Args:
        architectures: ten times the compute capabilities of the code, in rising order, e.g. ``"80:90"``. It runs on
            GPUs of the same generation that are not older, and the last has PTX, which runs on all that are not older.
        capability: of the GPU.

    >>> runs_on("80:90", (8, 6)), runs_on("80:90", (12, 0)), runs_on("90", (8, 0))
    (True, True, False)
    """
    numbers = [int(part.rstrip("af")) for part in architectures.split(":")]
    own = 10 * capability[0] + capability[1]
    return own >= numbers[-1] or any(own >= number and own // 10 == number // 10 for number in numbers)


def has_power_spectrum(waveform: Tensor, factors: Tensor) -> bool:
    """Whether `power_spectrum` takes such tensors."""
    n = factors.shape[-1]
    largest = LARGEST_SPECTRUM if factors.dtype == torch.complex64 else LARGEST_SPECTRUM // 2
    return (
        factors.is_complex()
        and n > 1
        and len(factors) > 0
        and (n <= largest or not waveform.is_cuda)
        and is_native(waveform)
    )


def has_filterbank(waveform: Tensor, factors: Tensor) -> bool:
    """Whether `log_filterbank` takes such tensors."""
    transformed = torch._C._are_functorch_transforms_active()
    return waveform.is_cuda and not transformed and has_power_spectrum(waveform, factors)


def is_ready() -> bool:
    """Whether the native operators take tensors of the processor now just as they are."""
    return _ready and forward_ad._current_level < 0 and not _is_autocast_enabled("cpu") and not _is_compiling()


def reason_for_none(device: str) -> str | None:
    """Why there are no native kernels for a type of device; None where there are, or where nobody asked for any."""
    return _missing.get(device)


def _warn_once(device: str) -> None:
    if device not in _warned and not torch.compiler.is_compiling():
        _warned.add(device)
        text = _NO_LIBRARY if device == "cpu" else _NO_CUDA_LIBRARY
        warnings.warn(text.format(reason=_missing[device]), UserWarning, stacklevel=4)


def cpu_capability() -> str | None:
    """Instruction set of the native CPU kernels in use: ``"avx512"``, ``"avx2"`` or ``"baseline"``; None without them.

    The best one that the processor has, or a lesser one that the environment variable ``KALEIDO_CPU_CAPABILITY``
    names when the package is imported.
    """
    return torch.ops.kaleido_audio.cpu_capability() if "cpu" in _devices else None


def _load() -> None:
    global _ready, _butterfly_no_grad
    backend = _read_choice("KALEIDO_BACKEND", ("reference",))
    capability = _read_choice("KALEIDO_CPU_CAPABILITY", ("baseline", "avx2", "avx512"))
    if backend == "reference":
        return
    if _load_library("cpu", "KALEIDO_CPU_LIBRARY", _LIBRARY):
        if capability not in ("", cpu_capability()):
            warnings.warn(
                f"KALEIDO_CPU_CAPABILITY={capability}: this processor or the library lacks it, "
                f"{cpu_capability()} is in use",
                UserWarning,
                stacklevel=2,
            )
        _register()
        _butterfly_no_grad = torch.ops.kaleido_audio.butterfly_no_grad.default
        _ready = True
    # On a torch without CUDA the library would miss what it calls.
    if torch.version.cuda is None:
        return
    if "cpu" not in _devices:
        _missing["cuda"] = "nor are there any for the processor, which they need"
    elif _load_library("cuda", "KALEIDO_CUDA_LIBRARY", _CUDA_LIBRARY):
        torch.library.register_fake("kaleido_audio::log_filterbank", _fake_log_filterbank)


def _read_choice(variable: str, choices: tuple[str, ...]) -> str:
    """What an environment variable says; whoever mistypes it would measure something else."""
    value = os.environ.get(variable, "")
    if value not in ("", *choices):
        raise ValueError(
            f"expected the environment variable {variable} to be {', '.join(choices)} or unset, got {value!r}"
        )
    return value


def _load_library(device: str, variable: str, built: Path) -> bool:
    named = os.environ.get(variable)
    path = Path(named or built)
    if not path.is_file():
        missing = f"{variable} names {named!r}, which is no file: correct or unset it"
        _missing[device] = missing if named else f"{path.name} was not built"
        return False
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        _missing[device] = f"{path.name} does not load: {error}"
        return False
    if not all(hasattr(torch.ops.kaleido_audio, name) for name in _OPERATORS[device]):
        _missing[device] = f"{path} lacks operators of this version of the package: build it again"
        return False
    _devices.add(device)
    return True


def _register() -> None:
    namespace = "kaleido_audio::"
    torch.library.register_fake(namespace + "butterfly", _fake_butterfly)
    torch.library.register_fake(namespace + "butterfly_no_grad", _fake_butterfly)
    torch.library.register_fake(namespace + "butterfly_backward", _fake_butterfly_backward)
    torch.library.register_fake(namespace + "power_spectrum", _fake_power_spectrum)
    torch.library.register_fake(namespace + "power_spectrum_backward", _fake_power_spectrum_backward)
    _register_rules("butterfly", _save_butterfly, _butterfly_grad, vmap=_shared_factors_vmap)
    _register_rules("butterfly_backward", _save_butterfly_backward, _butterfly_grad_grad)
    _register_rules("power_spectrum", _save_power, _power_grad)
    _register_rules("power_spectrum_backward", _save_power_backward, _power_grad_grad)
    no_grad = torch.ops.kaleido_audio.butterfly_no_grad
    torch.library.register_vmap(namespace + "butterfly_no_grad", _shared_factors_vmap(no_grad))


def _register_rules(
    name: str,
    save: Callable[..., None],
    backward: Callable[..., Any],
    vmap: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> None:
    """Gradient and vmap of an operator, for PyTorch's dispatcher and for `torch.func`."""
    vmap = vmap or _looped_vmap
    torch.library.register_autograd(f"kaleido_audio::{name}", backward, setup_context=save)
    torch.library.register_vmap(f"kaleido_audio::{name}", vmap(getattr(torch.ops.kaleido_audio, name)))
    call = functools.partial(_call, name)
    members = {
        "forward": staticmethod(call),
        "setup_context": staticmethod(save),
        "backward": staticmethod(backward),
        "vmap": staticmethod(vmap(call)),
    }
    _functions[name] = type(name, (torch.autograd.Function,), members)


def _call(name: str, *args: Any) -> Any:
    # The transforms of torch.func do not know the gradients of registered operators (torch 2.11), only Functions'.
    if torch._C._are_functorch_transforms_active() and _transforms() != {_FUNCTIONALIZE}:
        return _functions[name].apply(*args)
    return getattr(torch.ops.kaleido_audio, name).default(*args)


def _has_no_rule() -> bool:
    """Whether the active transforms of `torch.func` can go neither into an operator nor into a Function."""
    return _is_compiling() or (_FUNCTIONALIZE in _transforms() and len(_transforms()) > 1)


def _transforms() -> set[Any]:
    """Kinds of the active transforms of `torch.func`."""
    return {level.key() for level in torch._C._functorch.get_interpreter_stack() or ()}


# --- butterfly ---


def butterfly(x: Tensor, factors: Tensor, out_features: int) -> Tensor:
    """`kaleido_audio.ops.butterfly_multiply` for arguments that fit, on a device for which `is_native` holds."""
    if _is_tracing():  # torch.jit records with gradients and checks without: both shall be one operator
        return _call("butterfly", x, factors, out_features)
    if torch.is_grad_enabled():
        # Under vmap a tensor does not say whether what is in it needs gradients.
        if torch._C._are_functorch_transforms_active():
            if _has_no_rule():
                return _butterfly_by_stages(x, factors, out_features)
            return _call("butterfly", x, factors, out_features)
        if x.requires_grad or factors.requires_grad:
            if _is_compiling():
                return _call("butterfly", x, factors, out_features)
            return _Butterfly.apply(x, factors, out_features)
    return _butterfly_no_grad(x, factors, out_features)


def _butterfly_by_stages(x: Tensor, factors: Tensor, out_features: int) -> Tensor:
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y = multiply_by_stages(wide, factors)[..., :out_features]
    return y.to(factors.dtype if factors.is_complex() else x.dtype)


class _Butterfly(torch.autograd.Function):
    """The operator with its gradient: for a few vectors, the rules registered for it take longer than the product.

    They stay for what traces or transforms a program.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factors: Tensor, out_features: int) -> Tensor:
        # For its own gradient alone, x is its shape: the layer of constant factors keeps no activations.
        ctx.x_like = (x.shape, x.dtype)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, factors)
        return _butterfly_no_grad(x, factors, out_features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[:2]
        x, factors = ctx.saved_tensors
        if x is None:
            shape, dtype = ctx.x_like
            x = grad.new_zeros(shape, dtype=dtype)
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # a second derivative may follow, or is taken
            return *_butterfly_grads(grad, x, factors, needed), None
        with torch._C._AutoDispatchBelowAutograd():
            grads = torch.ops.kaleido_audio.butterfly_backward.default(grad, x, factors, *needed)
        return *_chosen(grads, needed), None


def _fake_butterfly(x: Tensor, factors: Tensor, out_features: int) -> Tensor:
    dtype = factors.dtype if factors.is_complex() else x.dtype
    return x.new_empty((*x.shape[:-1], out_features), dtype=dtype)


def _fake_butterfly_backward(
    grad: Tensor, x: Tensor, factors: Tensor, x_grad: bool, factors_grad: bool
) -> tuple[Tensor, Tensor]:
    return _new_if(x_grad, x), _new_if(factors_grad, factors)


def _new_if(needed: bool, like: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    return like.new_empty((like.shape if shape is None else shape) if needed else (0,))


def _save_butterfly(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])


def _butterfly_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, factors = ctx.saved_tensors
    return *_butterfly_grads(grad, x, factors, ctx.needs_input_grad[:2]), None


def _butterfly_grads(grad: Tensor, x: Tensor, factors: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Gradients of x and the factors, which can be differentiated again."""
    if forward_ad._current_level >= 0:
        grads = _composite_grads(_butterfly_of(grad), grad, (x, factors))
    else:
        grads = _call("butterfly_backward", grad, x, factors, *needed)
    return _chosen(grads, needed)


def _butterfly_of(grad: Tensor) -> Callable[..., Tensor]:
    """The composite function whose result has this gradient."""
    return lambda x, factors: _butterfly_by_stages(x, factors, grad.shape[-1])


def _save_butterfly_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.needed = inputs[3:]


def _butterfly_grad_grad(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, factors = ctx.saved_tensors
    return *_second_order(ctx, _butterfly_of(grad), grad, (x, factors), grads), None, None


# --- power spectrum ---


def power_spectrum(waveform: Tensor, window: Tensor, factors: Tensor, rows: Tensor, hop: int) -> Tensor:
    """`kaleido_audio.ops.butterfly_power_spectrum` of a waveform ``(batch, time)``, for arguments that fit."""
    if torch._C._are_functorch_transforms_active() and _has_no_rule():
        return power_spectrum_by_stages(waveform, window, factors, rows, hop)
    return _call("power_spectrum", waveform, window, factors, rows, hop)


def _fake_power_spectrum(waveform: Tensor, window: Tensor, factors: Tensor, rows: Tensor, hop: int) -> Tensor:
    frames = (waveform.shape[-1] - window.shape[0]) // hop + 1
    return waveform.new_empty((waveform.shape[0], frames, rows.shape[0]))


def _fake_power_spectrum_backward(
    grad: Tensor,
    waveform: Tensor,
    window: Tensor,
    factors: Tensor,
    rows: Tensor,
    hop: int,
    waveform_grad: bool,
    window_grad: bool,
    factors_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_if(waveform_grad, waveform), _new_if(window_grad, window), _new_if(factors_grad, factors)


def _save_power(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.hop = inputs[4]


def _power_grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad[:3]
    *inputs, rows = ctx.saved_tensors
    if forward_ad._current_level >= 0:  # as in `_butterfly_grads`
        grads = _composite_grads(_power_of(rows, ctx.hop), grad, inputs)
    else:
        grads = _call("power_spectrum_backward", grad, *inputs, rows, ctx.hop, *needed)
    return *_chosen(grads, needed), None, None


def _power_of(rows: Tensor, hop: int) -> Callable[..., Tensor]:
    """The composite function of waveform, window and factors."""
    return lambda waveform, window, factors: power_spectrum_by_stages(waveform, window, factors, rows, hop)


def _save_power_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.hop = inputs[5]
    ctx.needed = inputs[6:]


def _power_grad_grad(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grad, waveform, window, factors, rows = ctx.saved_tensors
    inputs = waveform, window, factors
    return *_second_order(ctx, _power_of(rows, ctx.hop), grad, inputs, grads), None, None, None, None, None


# --- filterbank ---


def log_filterbank(
    waveform: Tensor,
    window: Tensor,
    factors: Tensor,
    rows: Tensor,
    hop: int,
    fb: Tensor,
    power: float,
    log_scale: float | None,
    eps: float,
    floor: float | None,
) -> Tensor:
    """`kaleido_audio.ops.butterfly_filterbank` of a waveform ``(batch, time)``, for arguments that fit."""
    with torch.no_grad():
        operator = torch.ops.kaleido_audio.log_filterbank.default
        offset, least = (eps, -math.inf) if floor is None else (0.0, floor)
        return operator(waveform, window, factors, rows, hop, fb, power, log_scale or 0.0, offset, least)


def _fake_log_filterbank(
    waveform: Tensor,
    window: Tensor,
    factors: Tensor,
    rows: Tensor,
    hop: int,
    fb: Tensor,
    power: float,
    log_scale: float,
    eps: float,
    floor: float,
) -> Tensor:
    return waveform.new_empty((waveform.shape[0], (waveform.shape[-1] - window.shape[0]) // hop + 1, fb.shape[1]))


# --- what the operators share ---


def _chosen(grads: tuple[Tensor, ...], needed: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if n else None for g, n in zip(grads, needed, strict=True))


def _composite_grads(function: Callable[..., Tensor], grad: Tensor, inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Gradients by PyTorch's own rules for a composite function, which forward mode can follow too."""
    return torch.func.vjp(function, *_alive(inputs))[1](grad)


def _alive(saved: Iterable[Tensor]) -> list[Tensor]:
    """Saved tensors without the wrapper of a transform of `torch.func` that has ended, on which another would trip."""
    return [torch._C._functorch.unwrap_if_dead(tensor) for tensor in saved]


def _second_order(
    ctx: Any,
    function: Callable[..., Tensor],
    grad: Tensor,
    inputs: tuple[Tensor, ...],
    grads: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of a backward operator, by those of the composite function that it differentiates.

    Args:
        ctx: of the backward operator, with ``needed``: which of its outputs were asked for.
        function: from ``inputs`` to what ``grad`` is the gradient of.
        grads: gradients of the operator's outputs, one for each of ``inputs``.
    """

    def differentiated(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        pull_back = torch.func.vjp(function, *inputs)[1]
        return _needed(pull_back(grad))

    def _needed(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(g for g, n in zip(grads, ctx.needed, strict=True) if n)

    second = torch.func.vjp(differentiated, *_alive((grad, *inputs)))[1](_needed(grads))
    return _chosen(second, ctx.needs_input_grad[: len(second)])


def _shared_factors_vmap(call: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int]]:
    looped = _looped_vmap(call)

    def rule(info: Any, in_dims: tuple[Any, ...], x: Tensor, factors: Tensor, out_features: int) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            return looped(info, in_dims, x, factors, out_features)
        return call(x.movedim(in_dims[0], 0), factors, out_features), 0

    return rule


def _looped_vmap(call: Callable[..., Any]) -> Callable[..., Any]:
    """One call an item."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        results = [
            call(*(a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        stacked = tuple(torch.stack(parts) for parts in zip(*results, strict=True))
        return stacked, (0,) * len(stacked)

    return rule


_load()
