"""Tensors that follow from the options of a module, such as index tables, and need no place in its state_dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ModuleWithTables(nn.Module):
    """Base of modules with derived tensors: they are right again after the meta device, however it was left.

    A module made on the meta device gets real memory by ``to_empty`` or by ``load_state_dict(..., assign=True)``. A
    buffer that the state_dict does not hold would keep anything, or stay behind. Indices are no buffers at all: what
    averages buffers over time (`torch.optim.swa_utils.AveragedModel` with ``use_buffers``) would round them to others.
    A subclass defines `tables` and calls `register_tables`.
    """

    _table_names: tuple[str, ...] = ()

    def tables(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not define tables")

    def register_tables(self, device: torch.device | str | None = None) -> None:
        """Compute them for the first time.

        Args:
            device: to put them on; the default device by default.
        """
        self._table_names = tuple(self.tables())
        for name, table in self.tables().items():
            placed = table.to(device) if device is not None else table
            if table.is_floating_point():
                self.register_buffer(name, placed, persistent=False)
            else:
                setattr(self, name, placed)
        self.register_load_state_dict_post_hook(_follow_parameters)

    def _move_tables(self, device: torch.device) -> None:
        with torch.device("cpu"):
            for name, table in self.tables().items():
                setattr(self, name, table.to(device, getattr(self, name).dtype))

    def _has_meta_tables(self) -> bool:
        return any(getattr(self, name).is_meta for name in self._table_names)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModuleWithTables:
        were_meta = self._has_meta_tables()
        super()._apply(fn, recurse)
        for name in self._table_names:
            if name not in self._buffers:
                setattr(self, name, fn(getattr(self, name)))
        if self._table_names and were_meta and not self._has_meta_tables():
            self._move_tables(getattr(self, self._table_names[0]).device)
        return self


def _follow_parameters(module: nn.Module, incompatible_keys: Any) -> None:
    """Tables left on the meta device go where the parameters are."""
    parameter = next(module.parameters(recurse=False), None)
    if isinstance(module, ModuleWithTables) and module._has_meta_tables():
        if parameter is not None and not parameter.is_meta:
            module._move_tables(parameter.device)
