"""Parts of PyTorch's compiler that are not public, in one place, and what takes over where one is missing."""

import contextlib
import functools
import inspect
import logging
import os
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

try:
    from torch._higher_order_ops.while_loop import while_loop_op
except ImportError:
    while_loop_op = None
try:
    from torch._ops import HigherOrderOperator
except ImportError:
    HigherOrderOperator = ()  # type: ignore[assignment,misc]


one_at_a_time = threading.RLock()  # for threads that trace or compile, in which PyTorch changes what all of them see


@functools.cache
def loops_may_write() -> bool:
    """Whether a compiled `while_loop` may write to buffers that it is given (PyTorch 2.14)."""
    if while_loop_op is None:
        return False
    return "mutated_arg_indices" in inspect.signature(type(while_loop_op).__call__).parameters


def against_loops(device_type: str) -> str | None:
    """Why there can be no compiled loop over tensors of a device, or None."""
    if not loops_may_write():
        return f"PyTorch {torch.__version__} has no loops that write to buffers; 2.14 has"
    return None if device_type == "cpu" else f"loops are compiled for CPUs, and the state is on {device_type}"


def while_loop(condition: Any, body: Any, carried: Any, given: Any, written: Iterable[int]) -> Any:
    """What is carried once the condition no longer holds; to be traced.

    :param condition, body: graphs of functions of (*carried, *given)
    :param written: places in ``given`` of buffers that the body writes to
    """
    keywords = {}
    if written:
        keywords["mutated_arg_indices"] = ",".join(str(len(carried) + i) for i in written)
    return while_loop_op(condition, body, tuple(carried), tuple(given), **keywords)


def has_effects() -> bool:
    """Whether the function that Dynamo is tracing in this thread changes anything but tensors in place."""
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    effects, new = InstructionTranslator.current_tx().output.side_effects, (AttributeMutationNew, ValueMutationNew)
    old = [variable for variable in effects.id_to_variable.values() if not isinstance(variable.mutation_type, new)]
    return bool(effects.tensor_hooks) or any(map(effects.is_modified, old))


# what Dynamo does not look at again, for speed: hooks of modules, whether parameters have become one and the same,
# defaults of functions, and tensors in dicts that hold what they held
_SHORTCUTS = (
    "skip_nnmodule_hook_guards", "skip_no_tensor_aliasing_guards_on_parameters",
    "skip_guards_on_constant_func_defaults", "skip_tensor_guards_with_matching_dict_tags",
    "use_recursive_dict_tags_for_guards",
)  # fmt: skip


@contextlib.contextmanager
def without_shortcuts() -> Iterator[None]:
    """Context in which Dynamo guards everything that its graphs depend on."""
    from torch._dynamo import config

    before = {name: True for name in _SHORTCUTS if getattr(config, name, False)}
    try:
        for name in before:
            setattr(config, name, False)
        yield
    finally:
        for name in before:
            setattr(config, name, True)


@contextlib.contextmanager
def zeros_guarded() -> Iterator[None]:
    """Context in which Dynamo guards the signs of zeros among the numbers that it makes constants: its own guard of a
    number is ==, by which 0.0 is -0.0. Numbers that are not zero cost nothing."""
    try:
        from torch._dynamo.guards import GuardBuilder

        by_value = GuardBuilder.EQUALS_MATCH
    except (ImportError, AttributeError):
        yield
        return

    @functools.wraps(by_value)
    def with_signs(self: Any, guard: Any, *arguments: Any, **keywords: Any) -> None:
        by_value(self, guard, *arguments, **keywords)
        value = self.get(guard)
        if not _has_zeros(value):
            return
        shown, add = repr(value), self.get_guard_manager(guard).add_lambda_guard
        given = (lambda now: repr(now) == shown), [f"repr(...) == {shown!r}"]
        try:
            add(*given, guard.user_stack)
        except TypeError:  # a PyTorch that does not ask for it
            add(*given)

    GuardBuilder.EQUALS_MATCH = with_signs  # type: ignore[method-assign]
    try:
        yield
    finally:
        GuardBuilder.EQUALS_MATCH = by_value  # type: ignore[method-assign]


def _has_zeros(value: Any) -> bool:
    """Whether a number, or a part of it, is a zero that has a sign."""
    return value == 0 if isinstance(value, float) else isinstance(value, complex) and 0 in (value.real, value.imag)


# by the beginning of its name, which may go on with another "Error"
_LOOKUPS = tuple(f"Observed{name}Error" for name in ("Attribute", "Key", "Lookup", "Name", "Import", "ModuleNotFound"))


@contextlib.contextmanager
def failed_lookups() -> Iterator[list[str]]:
    """Context with a list of the lookups that failed in this thread while Dynamo traced, and were caught by what it
    traced, but for PyTorch's code and `functools.wraps`: that something is missing is no matter of its guards."""
    caught: list[str] = []
    try:
        from torch._dynamo.symbolic_convert import InstructionTranslatorBase as Translator

        handled, here = Translator.exception_handler, threading.get_ident()
    except (ImportError, AttributeError):
        yield caught
        return

    def noted(self: Any, raised: Any) -> None:
        handled(self, raised)  # raises where nothing catches it
        kind, home = type(raised).__name__, str(self.f_globals.get("__name__")).partition(".")[0]
        if kind.startswith(_LOOKUPS) and home not in ("torch", "functools") and threading.get_ident() == here:
            caught.append(kind.partition("Error")[0].removeprefix("Observed") + "Error")

    Translator.exception_handler = noted  # type: ignore[method-assign,assignment]
    try:
        yield caught
    finally:
        Translator.exception_handler = handled  # type: ignore[method-assign]


_OF_ALL_MODULES = [
    f"_global_{way}_{kind}" for way in ("forward", "backward") for kind in ("hooks", "pre_hooks")
]  # fmt: skip


def hooks_of_all_modules() -> tuple[int, ...]:
    """The identities of the hooks that PyTorch calls for every module, which no guard of Dynamo's looks at."""
    of_all = vars(torch.nn.modules.module)
    return tuple(id(hook) for name in _OF_ALL_MODULES for hook in of_all.get(name, {}).values())


try:
    from torch._C._dynamo.eval_frame import _debug_get_cache_entry_list as _kept_code
except ImportError:
    _kept_code = None


def guarded_code(function: Any, arguments: Sequence[Any]) -> Any:
    """What Dynamo made of a function for arguments like these, if its guards hold; or None.

    Calling that takes a tenth of a call by way of `torch.compile`, which finds the same.
    """
    code, closure = function.__code__, function.__closure__ or ()
    if _kept_code is None:
        return None
    named = dict(zip(code.co_varnames, arguments))
    named |= {name: cell.cell_contents for name, cell in zip(code.co_freevars, closure)}
    for entry in _kept_code(code):
        if entry.code is not None and entry.guard_manager.check(named):  # None: what it was made for is gone
            return types.FunctionType(entry.code, function.__globals__, code.co_name, None, closure)
    return None


@functools.cache
def vectors_are_tried() -> Callable[[], None]:
    """Let Inductor try the compiler with the widest vectors of the processor alone, in the background.

    It would try all kinds of vectors, one behind the other, and use the widest: 12 seconds instead of 6, once a machine
    (what was found stays on disk).

    :returns: a function that waits for it
    """
    from torch._inductor import codecache, config, cpp_builder, cpu_vec_isa  # noqa: F401 -- not in two threads at once

    try:
        found, processor = cpu_vec_isa.valid_vec_isa_list, cpu_vec_isa.x86_isa_checker()
        every = cpu_vec_isa.supported_vec_isa_list
        tried = found.cache_info().currsize
    except AttributeError:
        return lambda: None
    kinds = [kind for kind in every if all(flag in processor for flag in str(kind).split())]
    chosen_otherwise = "ATEN_CPU_CAPABILITY" in os.environ or config.cpp.simdlen is not None
    if tried or not kinds or chosen_otherwise or config.cpp.vec_isa_ok is not None:
        return lambda: None

    def attempt() -> None:
        if kinds[0]:  # to ask for its truth is to try it
            cpu_vec_isa.supported_vec_isa_list = kinds[:1]
            found()
            cpu_vec_isa.supported_vec_isa_list = every

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    return thread.join


def has_constants(graph: Any) -> bool:
    """Whether there are tensors in a graph. They become inputs of its code, and are no part of the key of the cache."""
    return next(graph.buffers(), None) is not None


def compiled_below_dynamo(graph: Any, inputs: Any, options: dict[str, Any]) -> Any:
    """Inductor's code for a graph of ATen's operations.

    :returns: a callable of tensors, and the bare code that it calls, a callable of a list of tensors (None: not known)
    """
    from torch._functorch import config as aot_config
    from torch._inductor import compile_fx

    vectors_are_tried()()
    cached = aot_config.enable_autograd_cache and not has_constants(graph)
    # code with loops is kept on disk too: the key to it is made of their bodies, which are graphs inside of this one
    options = options | {"unsafe_marked_cacheable_functions": {"torch.ops.higher_order.while_loop": torch.__version__}}
    with _shape_environment(), _without_notes(), aot_config.patch(enable_autograd_cache=cached), _made_ready() as made:
        whole = compile_fx.compile_fx(graph, list(inputs), config_patches=options)
    code = made[0] if len(made) == 1 else None
    return whole, getattr(code, "current_callable", None)


@contextlib.contextmanager
def _made_ready() -> Iterator[list[Any]]:
    """Context with a list of Inductor's graphs that are made ready to run, new or found on disk."""
    made: list[Any] = []
    try:
        from torch._inductor.output_code import CompiledFxGraph

        make_ready = CompiledFxGraph.post_compile
    except (ImportError, AttributeError):
        yield made
        return

    def noted(self: Any, *arguments: Any, **keywords: Any) -> Any:
        made.append(self)
        return make_ready(self, *arguments, **keywords)

    CompiledFxGraph.post_compile = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        CompiledFxGraph.post_compile = make_ready  # type: ignore[method-assign]


@contextlib.contextmanager
def _without_notes() -> Iterator[None]:
    """Context in which Inductor does not note, for each of them, the operations that it calls by a detour."""
    log = logging.getLogger("torch._inductor.ir")

    def is_wanted(record: logging.LogRecord) -> bool:
        return "c-shim" not in str(record.msg)

    log.addFilter(is_wanted)
    try:
        yield
    finally:
        log.removeFilter(is_wanted)


@contextlib.contextmanager
def _shape_environment() -> Iterator[None]:
    """Context with a fake mode that has an environment of shapes, which loops ask for."""
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))):
        yield
