"""Code that Inductor generates for functions of tensors."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ..inference_mode import normal
from .elementary import DECOMPOSITIONS
from .private_compiler import compiled_below_dynamo, has_constants, vectors_are_tried

BACKEND = "inductor"  # "aot_eager": graphs run as they are
TOLD_FROM = 5.0  # seconds of compiling
_log = logging.getLogger("torch_ACA")


def graph_of(function: Callable, inputs: Any) -> Any:
    """The graph of a function of tensors, of ATen's operations and in place of some of them what `elementary` has,
    derivatives inside of it included."""
    with torch.inference_mode(False), torch.no_grad():
        return make_fx(function, DECOMPOSITIONS, tracing_mode="fake")(*map(normal, inputs))


def generated(function: Callable, inputs: Any, options: dict[str, Any], *, bare: bool = False) -> Callable:
    """A callable of a list of tensors, like these inputs, that does what function(*tensors) does.

    :param options: of Inductor, a dict
    :param bare: call the generated code without what PyTorch puts around it, if that gives the same
    """
    inputs = [x.detach() for x in inputs]
    if BACKEND == "inductor":
        vectors_are_tried()
    graph = graph_of(function, inputs)
    if BACKEND != "inductor":
        return lambda given: graph(*given)
    with torch.no_grad():
        whole, code = compiled_below_dynamo(graph, inputs, options)
    if bare and code is not None and not has_constants(graph) and _agree(whole, code, inputs):
        return code
    return lambda given: whole(*given)


def _agree(whole: Callable, code: Any, inputs: Any) -> bool:
    """Whether the bare code returns what the whole does; on copies, since func may write to its tensors."""
    expected, found = whole(*[x.clone() for x in inputs]), code([x.clone() for x in inputs])
    return len(expected) == len(found) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        for a, b in zip(expected, found)
    )


class Stopwatch:
    """Adds up the time that code for one func takes to compile, and says so once if it is long."""

    def __init__(self, name: str) -> None:
        self._name, self._seconds, self._told = name, 0.0, False

    def add(self, seconds: float) -> None:
        self._seconds += seconds

    def tell(self) -> None:
        """To be called when a solve, or its backward pass, has all its code."""
        if self._seconds > TOLD_FROM and not self._told:
            self._told = True
            _log.warning(
                "compile: code for %s took %.0f s to make. PyTorch keeps most of it on disk (TORCHINDUCTOR_CACHE_DIR) "
                "for later processes; torch.compiler.save_cache_artifacts takes it to other machines",
                self._name, self._seconds,
            )  # fmt: skip
