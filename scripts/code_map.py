"""The map of torch_ACA on the page docs/code.md: the first line of every module's docstring, for render_docs.py."""

import ast
from pathlib import Path

from harness.tables import table

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "torch_ACA"
# By the way of a solve. A name is a module, or a folder, whose modules follow it but where it ends with a slash.
GROUPS = {
    "What users call": (
        "api", "block", "events", "compare", "callbacks", "solution", "record", "errors", "compat", "odesolver/",
        "odesolver_mem/",
    ),
    "What was asked": ("solver_options", "plan", "settings", "tolerances", "option_checks"),
    "The problem: state and func": (
        "set_up", "problem", "state", "trees", "vector_field", "side_effects", "side_outputs", "random_streams",
        "output_memory", "hidden", "autocast", "default_device", "inference_mode",
    ),
    "What func depends on": (
        "capture", "reach", "graph", "cut", "evaluation", "kept_func", "copies", "settled", "transforms",
    ),
    "Methods": (
        "methods", "tableau", "tableaus", "decimal_tableaus", "interpolants", "adams_weights", "rosenbrock_tableaus",
        "jacobian", "linearisation", "switching", "scipy_solver",
    ),
    "One step": ("steppers",),
    "The loop over steps": ("march", "controller", "tensor_controller", "few_steps"),
    "The backward pass": ("gradients",),
    "Rows with their own steps": ("rows",),
    "Compiled solves": ("compilation",),
    "Used everywhere": ("notices", "private_torch", "saved_tensors"),
}  # fmt: skip


def code_map(package=PACKAGE, groups=GROUPS):
    """A table for each group.

    :raises ValueError: a module is in no group or in several, or its docstring does not begin with one line
    """
    grouped = sorted(name.rstrip("/") for names in groups.values() for name in names)
    there = sorted({path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")})
    there.remove("__init__")
    if grouped != there:
        odd = {name for name in {*grouped, *there} if grouped.count(name) != there.count(name)}
        raise ValueError(f"GROUPS in {Path(__file__).name} has to name once: {', '.join(sorted(odd))}")
    parts = []
    for title, names in groups.items():
        rows = [row(path, package) for name in names for path in paths(package, name)]
        parts.append(f"\n## {title}\n\n{table(['module', 'what it is for'], rows)}")
    return "".join(parts) + "\n"


def paths(package, name):
    """The module of that name, or the folder and its modules."""
    folder = package / name
    if not folder.is_dir():
        return [package / f"{name}.py"]
    return [folder] + ([] if name.endswith("/") else sorted(folder.glob("[!_]*.py")))


def row(path, package):
    """Cells of a module, or of a folder."""
    module = path / "__init__.py" if path.is_dir() else path
    first, *others = (ast.get_docstring(ast.parse(module.read_text())) or "").splitlines() or [""]
    if not first.endswith(".") or any(others[:1]):
        raise ValueError(f"{module}: the docstring has to begin with one line, and an empty one behind it")
    name = path.relative_to(package).as_posix() + ("/" if path.is_dir() else "")
    target = f"../{package.name}/{name}"
    return [f"[`{name}`]({target})", first.replace("``", "`").replace("|", "\\|")]
