"""Where a private name of PyTorch is gone, a public one takes over: slower, never wrong."""

import math
import pathlib
import platform
import re
import sys
import types
import typing
from collections import OrderedDict

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

import torch_ACA
from tests.torch_ACA.programs import assert_close, keywords_of, tolerance_of
from torch_ACA import private_torch, solve, transforms, trees, vector_field
from torch_ACA.compilation import private_compiler

UNKNOWN = ["_are_transforms_active", "_sequence_number"]  # without them, all solves go as under a transform


def gradients(kind):
    torch.manual_seed(0)
    field = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    field.double()
    encoder = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    context = encoder.sin() * torch.ones(4, 1, dtype=torch.float64)
    y0, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0.0, 0.1, 0.2], dtype=torch.float64)
    ys = solve(lambda s, y: field(y) * s.cos() + context, y0, t, **keywords_of(kind)).ys
    ys.sin().sum().backward()
    return [encoder.grad, *(p.grad for p in field.parameters()), *field.buffers()]


@pytest.mark.parametrize("kind", ["aca", "direct", "adjoint", "mali"])
@pytest.mark.parametrize("name", ["_run_backward", "set_grad_enabled", "_dispatch_keys", *UNKNOWN])
def test_without_a_name_the_gradients_are_the_same(kind, name, monkeypatch):
    expected = gradients(kind)
    if name == "set_grad_enabled":
        monkeypatch.setattr(vector_field, name, torch.set_grad_enabled)
    else:
        monkeypatch.setattr(private_torch, name, None)
    if name in ("_dispatch_keys", *UNKNOWN) and kind in ("adjoint", "mali"):
        with pytest.raises(torch_ACA.TransformError):  # a transform may be active, for all that is known
            gradients(kind)
        return
    found = gradients(kind)
    if name in UNKNOWN:  # the steps run once more, as ordinary operations: BatchNorm counts them too
        n_buffers = 3
        found, expected = found[:-n_buffers], expected[:-n_buffers]
    assert_close(found, expected, tolerance_of(kind))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["_current_level", "_set_fwd_grad_enabled"])
def test_without_a_name_of_forward_mode_tangents_are_the_same_or_refused(name, monkeypatch):
    def tangent():
        y0 = torch.tensor([1.0, 2.0], dtype=torch.float64)
        with forward_ad.dual_level():
            rate = forward_ad.make_dual(torch.tensor(0.5, dtype=torch.float64), torch.ones((), dtype=torch.float64))
            ys = solve(lambda t, y: -rate * y, y0, torch.tensor([0.0, 1.0]), rtol=1e-8, atol=1e-10).ys
            return forward_ad.unpack_dual(ys[-1]).tangent

    expected = tangent()
    torch.testing.assert_close(expected, -torch.tensor([1.0, 2.0]).double() * math.exp(-0.5), rtol=1e-6, atol=0.0)
    if name == "_current_level":
        # PyTorch's own functions read the name too: only the look at it is taken away
        monkeypatch.setattr(private_torch, "forward_ad", types.SimpleNamespace(make_dual=forward_ad.make_dual))
    else:
        monkeypatch.setattr(private_torch, "_forward_ad_switch", None)
        with pytest.raises(torch_ACA.TransformError, match="another version of PyTorch"):
            tangent()
        return
    torch.testing.assert_close(tangent(), expected, rtol=1e-14, atol=0.0)
    assert not transforms.under_transform()


class Pair(typing.NamedTuple):
    left: object
    right: object


NESTED = [
    1, (), [], {}, None, (1, 2), [1, (2,)], {"b": 1, "a": [2, None]}, Pair((1,), {"x": 2}), OrderedDict(b=(), a=(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("tree", NESTED)
def test_trees_are_those_of_pytorch(tree):
    leaves, structure = trees.tree_flatten(tree)
    assert leaves == trees.tree_leaves(tree) == pytree.tree_leaves(tree)
    again = trees.tree_unflatten(leaves, structure)
    assert again == tree and type(again) is type(tree)
    for other in NESTED:
        same = trees.tree_structure(other) == structure
        assert same == (pytree.tree_structure(other) == pytree.tree_structure(tree))
    assert trees.tree_map(str, tree) == pytree.tree_map(str, tree)
    assert trees.tree_map_only(int, float, tree) == pytree.tree_map_only(int, float, tree)


def test_without_pytrees_the_solution_is_the_same(monkeypatch):
    def solution():
        y0 = {"a": torch.ones(2), "b": [torch.zeros(3, 1), (torch.ones(()),)]}
        return solve(
            lambda t, y: {"a": -y["a"], "b": [y["b"][0] + t, (y["a"].sum(),)]}, y0, torch.tensor([0.0, 1.0])
        ).ys

    expected = solution()
    users = [
        module for name, module in sys.modules.items() if name.startswith("torch_ACA.") and hasattr(module, "pytree")
    ]
    assert len(users) > 5
    for module in users:
        monkeypatch.setattr(module, "pytree", trees)
    torch.testing.assert_close(solution(), expected, rtol=0.0, atol=0.0)


def test_private_names_stand_in_two_modules():
    private = (
        r"torch\._(?!inductor|foreach|_version__)"
        r"|_execution_engine|forward_ad\._|import _pytree|parametrize\._"
    )
    root = pathlib.Path(torch_ACA.__file__).parent
    for path in root.rglob("*.py"):
        if path.name not in ("private_torch.py", "private_compiler.py"):
            assert not re.search(private, path.read_text()), path
    assert not transforms.under_transform()


class Vectors:
    """A kind of vectors in PyTorch's compiler, which is asked for its truth to try it."""

    def __init__(self, name, works, tried):
        self.name, self.works, self.tried = name, works, tried

    def __str__(self):
        return self.name

    def __bool__(self):
        self.tried.append(self.name)
        return self.works


@pytest.mark.parametrize("widest_works", [True, False])
def test_only_the_widest_vectors_are_tried(monkeypatch, widest_works):
    """If the compiler can use them; else PyTorch tries all kinds."""
    cpu_vec_isa = pytest.importorskip("torch._inductor.cpu_vec_isa")
    found = cpu_vec_isa.valid_vec_isa_list
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        pytest.skip("no processor with a choice of vectors")
    tried = []
    kinds = [Vectors("not here", True, tried), Vectors("wide", widest_works, tried), Vectors("narrow", True, tried)]
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", kinds)
    monkeypatch.setattr(cpu_vec_isa, "x86_isa_checker", lambda: ["wide", "narrow"])
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    found.cache_clear(), private_compiler.vectors_are_tried.cache_clear()
    try:
        private_compiler.vectors_are_tried()()
        private_compiler.vectors_are_tried()()
        assert set(tried) == {"wide"} and cpu_vec_isa.supported_vec_isa_list is kinds
        assert [str(kind) for kind in found()] == (["wide"] if widest_works else ["narrow"])
    finally:
        found.cache_clear(), private_compiler.vectors_are_tried.cache_clear()
