"""How much autograd keeps for a backward pass."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class SavedTensors:
    """Context manager that counts the bytes of the tensors that autograd keeps: ``held`` now, ``peak`` at most.

    Tensors that share storage count once.
    """

    def __init__(self) -> None:
        self.held = self.peak = 0
        self._users = {}

    def __enter__(self) -> "SavedTensors":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda box: box.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> "_Box":
        key, size = _storage(tensor)
        users = self._users.get(key, 0)
        self._users[key] = users + 1
        if not users:
            self.held += size
            self.peak = max(self.peak, self.held)
        box = _Box(tensor.detach())  # an output that held on to its own graph would never be freed
        weakref.finalize(box, self._release, key, size)
        return box

    def _release(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            self.held -= size


class SavedOnce:
    """Context manager that finds out what one graph keeps, at little cost; it must not outlive the graph.
    ``n_tensors``: saved by its operations."""

    def __init__(self) -> None:
        self._sizes = {}
        self.n_tensors = 0

    def __enter__(self) -> "SavedOnce":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Take in what is kept past the hooks."""
        self._sizes.update(map(_storage, tensors))

    def n_bytes(self, tensors: Iterable[Tensor], *, without: Iterable[Tensor] = ()) -> int:
        """Bytes of what is kept and of these tensors, without the storages of others."""
        sizes = self._sizes | dict(map(_storage, tensors))
        for tensor in without:
            sizes.pop(_storage(tensor)[0], None)
        return sum(sizes.values())

    def _pack(self, tensor: Tensor) -> Any:
        key, size = _storage(tensor)
        self._sizes[key] = size
        self.n_tensors += 1
        # an output that held on to its own graph would never be freed; autograd compares no versions behind hooks
        return tensor.detach(), None if tensor.is_inference() else tensor._version


def _unpack(packed: tuple[Tensor, int | None]) -> Tensor:
    tensor, version = packed
    if version is not None and tensor._version != version:
        raise RuntimeError(
            "one of the variables needed for gradient computation has been modified by an inplace operation: a tensor "
            f"of shape {tuple(tensor.shape)} that func uses, or makes"
        )
    return tensor


def _storage(tensor: Tensor) -> tuple[int, int]:
    """What tells the memory of a tensor from others', and its bytes."""
    if tensor.layout is not torch.strided:
        parts = [tensor._indices(), tensor._values()] if tensor.layout is torch.sparse_coo else []
        return id(tensor), sum(part.numel() * part.element_size() for part in parts)
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


class _Box:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
