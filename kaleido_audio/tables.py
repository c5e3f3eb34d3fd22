"""Tensors that are no parameters and must stay exactly what they are, such as index tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class ModuleWithTables(nn.Module):
    """Base of modules with tables: they are right also after the meta device, however it was left, and in averages.

    A module made on the meta device gets real memory by ``to_empty`` or by ``load_state_dict(..., assign=True)``. A
    buffer that the state_dict does not hold would keep anything, or stay behind. So tables of integers, which follow
    from a subclass's options by its `tables`, are no buffers: they have real memory always, and are used as
    ``self.name.to(device)``, because in `torch.func.functional_call` the module may be on the meta device, and in
    `torch.nn.DataParallel` on another GPU than the parameters.

    Indices that belong to the weights are buffers of the state_dict, which is what copies and synchronises models. But
    what averages buffers over time (`torch.optim.swa_utils.AveragedModel` with ``use_buffers``) makes other indices of
    integers without a word: they are kept as floating-point numbers, by `register_indices`, and read by `indices`.
    """

    _table_names: tuple[str, ...] = ()
    _index_names: tuple[str, ...] = ()

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
        self.register_load_state_dict_post_hook(_follow_parameters)

    def register_indices(self, name: str, indices: Tensor, limit: int) -> None:
        """Make a buffer of indices.

        Args:
            name: of the buffer, whose type no ``half()`` changes.
            indices: integers in [0, limit).
            limit: decides the type, in which they are exact.
        """
        self._index_names = (*self._index_names, name)
        self.register_buffer(name, indices.to(torch.float32 if limit <= 1 << 24 else torch.float64))

    def indices(self, name: str) -> Tensor:
        """Those of `register_indices`, as int64."""
        numbers: Tensor = getattr(self, name)
        return numbers.round().long()

    def _computed_tables(self) -> dict[str, Tensor]:
        with torch.device("cpu"):
            return self.tables()

    def _integer_tables(self) -> list[str]:
        return [name for name in self._table_names if name not in self._buffers]

    def _meta_tables(self) -> list[str]:
        return [name for name in self._table_names if getattr(self, name).is_meta]

    def _restore(self, names: list[str], device: torch.device) -> None:
        tables = self._computed_tables() if names else {}
        for name in names:
            setattr(self, name, tables[name].to(device, getattr(self, name).dtype))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ModuleWithTables:
        def apply(tensor: Tensor) -> Any:
            # A memory format for images is for weights of convolutions, not for all tensors of four or five dimensions.
            if tensor.ndim < 4 or type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_contiguous():
                return fn(tensor)
            return fn(tensor.detach().flatten()).view(tensor.shape)

        were_meta = self._meta_tables()
        # A lower precision would not hold them.
        indices = {name: getattr(self, name) for name in self._index_names if name in self._buffers}
        super()._apply(apply, recurse)
        for name, before in indices.items():
            after = getattr(self, name)
            real = not (before.is_meta or after.is_meta)
            self._buffers[name] = before.to(after.device) if real else after.to(before.dtype)
        for name in self._integer_tables():
            table = getattr(self, name)
            setattr(self, name, _moved(table, fn(table).device))
        if were_meta and not self._meta_tables():
            self._restore(were_meta, getattr(self, were_meta[0]).device)
        return self


def _moved(table: Tensor, device: torch.device) -> Tensor:
    """On another device, but for the meta device, which keeps nothing."""
    return table if device.type == "meta" else table.to(device)


def _follow_parameters(module: nn.Module, incompatible_keys: Any) -> None:
    """What was left behind goes where the parameters are."""
    parameter = next(module.parameters(recurse=False), None)
    if isinstance(module, ModuleWithTables) and parameter is not None and not parameter.is_meta:
        module._restore(module._meta_tables(), parameter.device)
        for name in module._integer_tables():
            setattr(module, name, _moved(getattr(module, name), parameter.device))
