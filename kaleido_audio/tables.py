"""Buffers that follow from the options of a module, such as index tables, and need no place in its state_dict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ModuleWithTables(nn.Module):
    """Base of modules with derived buffers: they are right again after the meta device, however it was left.

    A module made on the meta device gets real memory by ``to_empty`` or by ``load_state_dict(..., assign=True)``. A
    buffer that the state_dict does not hold would keep anything, or stay behind. A subclass defines `tables` and calls
    `register_tables`.
    """

    def tables(self) -> dict[str, Tensor]:
        """The buffers by name, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not define tables")

    def register_tables(self, device: torch.device | str | None = None) -> None:
        """Compute them for the first time.

        Args:
            device: to put them on; the default device by default.
        """
        for name, table in self.tables().items():
            self.register_buffer(name, table.to(device) if device is not None else table, persistent=False)
        self.register_load_state_dict_post_hook(_follow_parameters)

    def _move_tables(self, device: torch.device) -> None:
        with torch.device("cpu"):
            for name, table in self.tables().items():
                setattr(self, name, table.to(device, getattr(self, name).dtype))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModuleWithTables:
        were_meta = any(buffer.is_meta for buffer in self._buffers.values() if buffer is not None)
        super()._apply(fn, recurse)
        names = [name for name, buffer in self._buffers.items() if buffer is not None and not buffer.is_meta]
        if were_meta and names:
            self._move_tables(getattr(self, names[0]).device)
        return self


def _follow_parameters(module: nn.Module, incompatible_keys: Any) -> None:
    """Tables left on the meta device go where the parameters are."""
    parameter = next(module.parameters(recurse=False), None)
    stayed = any(buffer is not None and buffer.is_meta for buffer in module._buffers.values())
    if isinstance(module, ModuleWithTables) and stayed and parameter is not None and not parameter.is_meta:
        module._move_tables(parameter.device)
