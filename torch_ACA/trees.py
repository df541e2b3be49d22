"""Nested tuples, lists and dicts as leaves and a structure: takes over where PyTorch's pytrees are gone."""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple


class Structure(NamedTuple):
    """Of a tuple, a list, or a dict with ``keys``; ``parts`` holds the structures of what is in it, None for a leaf."""

    kind: type
    keys: tuple | None
    parts: tuple


def tree_flatten(tree: Any) -> tuple[list, Structure | None]:
    leaves: list = []
    return leaves, _taken_apart(tree, leaves)


def tree_unflatten(leaves: Iterable, structure: Structure | None) -> Any:
    return _put_together(iter(leaves), structure)


def tree_leaves(tree: Any) -> list:
    return tree_flatten(tree)[0]


def tree_structure(tree: Any) -> Structure | None:
    return tree_flatten(tree)[1]


def tree_map(change: Callable, tree: Any) -> Any:
    leaves, structure = tree_flatten(tree)
    return tree_unflatten(map(change, leaves), structure)


def tree_map_only(kind: type, change: Callable, tree: Any) -> Any:
    """As `tree_map`, but for the leaves of a kind alone."""
    return tree_map(lambda leaf: change(leaf) if isinstance(leaf, kind) else leaf, tree)


def _taken_apart(tree: Any, leaves: list) -> Structure | None:
    kind, keys = type(tree), None
    if kind in (dict, OrderedDict):
        keys, tree = tuple(tree), tree.values()
    elif kind not in (tuple, list) and not _is_named_tuple(kind):
        leaves.append(tree)
        return None
    return Structure(kind, keys, tuple(_taken_apart(part, leaves) for part in tree))


def _put_together(leaves: Iterator, structure: Structure | None) -> Any:
    if structure is None:
        return next(leaves)
    kind, keys, parts = structure
    made = [_put_together(leaves, part) for part in parts]
    if _is_named_tuple(kind):
        return kind(*made)
    return kind(made if keys is None else zip(keys, made))


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields")
