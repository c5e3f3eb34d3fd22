"""Tensors that are no parameters and must stay exactly what they are, such as index tables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class ModuleWithTables(nn.Module):
    """Base of modules with tables: they are right also after the meta device, however it was left.

    A module made on the meta device gets real memory by ``to_empty`` or by ``load_state_dict(..., assign=True)``. A
    buffer that the state_dict does not hold would keep anything, or stay behind. Indices are no buffers at all: what
    averages buffers over time (`torch.optim.swa_utils.AveragedModel` with ``use_buffers``) would round them to others.
    They have real memory always, and are used as ``self.name.to(device)``: in `torch.func.functional_call` the module
    may be on the meta device, and in `torch.nn.DataParallel` on another GPU than the parameters.

    Tables that follow from a subclass's options come from its `tables`, by `register_tables`. Indices that the weights
    were made for are given to `register_saved`, and are in the state_dict.
    """

    _table_names: tuple[str, ...] = ()
    _saved_names: tuple[str, ...] = ()

    def tables(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not define tables")

    def register_tables(self, device: torch.device | str | None = None) -> None:
        """Compute them for the first time.

        Args:
            device: to put them on; the default device by default.
        """
        tables, device = self._computed_tables(), torch.empty(0, device=device).device
        self._table_names = tuple(tables)
        for name, table in tables.items():
            if table.is_floating_point():
                self.register_buffer(name, table.to(device), persistent=False)
            else:
                setattr(self, name, _moved(table, device))
        self._follow()

    def register_saved(self, name: str, indices: Tensor) -> None:
        """Keep indices as an attribute and in the state_dict, as a copy: nobody averages those of the module itself."""
        self._saved_names = (*self._saved_names, name)
        setattr(self, name, _moved(indices, torch.empty(0).device))
        self._follow()

    def forget_saved(self) -> None:
        """Undo `register_saved`."""
        for name in self._saved_names:
            delattr(self, name)
        self._saved_names = ()

    def _follow(self) -> None:
        if _follow_parameters not in self._load_state_dict_post_hooks.values():
            self.register_load_state_dict_post_hook(_follow_parameters)

    def _computed_tables(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            return self.tables()

    def _indices(self) -> list[str]:
        return [name for name in (*self._table_names, *self._saved_names) if name not in self._buffers]

    def _meta_tables(self) -> list[str]:
        return [name for name in self._table_names if getattr(self, name).is_meta]

    def _restore(self, names: list[str], device: torch.device) -> None:
        tables = self._computed_tables() if names else {}
        for name in names:
            setattr(self, name, tables[name].to(device, getattr(self, name).dtype))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModuleWithTables:
        def apply(tensor: Tensor) -> Any:
            # A memory format for images is for weights of convolutions, not for all tensors of four or five dimensions.
            if tensor.ndim < 4 or type(tensor) not in (Tensor, nn.Parameter):
                return fn(tensor)
            return fn(tensor.detach().flatten()).view(tensor.shape)

        were_meta = self._meta_tables()
        super()._apply(apply, recurse)
        for name in self._indices():
            indices = getattr(self, name)
            setattr(self, name, _moved(indices, fn(indices).device))
        if were_meta and not self._meta_tables():
            self._restore(were_meta, getattr(self, were_meta[0]).device)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._saved_names:
            destination[prefix + name] = getattr(self, name).clone()

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = {prefix + name: name for name in self._saved_names}
        for key, name in saved.items():
            own, given = getattr(self, name), state_dict.get(key)
            if given is None:
                missing_keys.extend([key] if strict else [])
            elif given.shape != own.shape:
                error_msgs.append(
                    f"size mismatch for {key}: copying a param with shape {tuple(given.shape)} from checkpoint, the "
                    f"shape in current model is {tuple(own.shape)}."
                )
            elif not given.is_meta:
                setattr(self, name, given.detach().to(own.device, own.dtype, copy=True))
        others = {key: value for key, value in state_dict.items() if key not in saved}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)


def _moved(indices: Tensor, device: torch.device) -> Tensor:
    """On another device, but for the meta device, which keeps nothing."""
    return indices if device.type == "meta" else indices.to(device)


def _follow_parameters(module: nn.Module, incompatible_keys: Any) -> None:
    """What was left behind goes where the parameters are."""
    own = next(chain(module.parameters(recurse=False), module.buffers(recurse=False)), None)
    if isinstance(module, ModuleWithTables) and own is not None and not own.is_meta:
        module._restore(module._meta_tables(), own.device)
        for name in module._indices():
            setattr(module, name, _moved(getattr(module, name), own.device))
