"""The tables of a benchmark, rendered from its records into tables.md; what has not run is blank."""

import math
import textwrap
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks import records
from benchmarks.breakdown import PARTS
from benchmarks.cases import (
    CASES,
    EVALUATIONS,
    VJPS,
    breakdown_rows,
    client_rows,
    diagram_rows,
    first_call_rows,
    growth_rows,
    time_rows,
)
from benchmarks.records import slope
from harness.files import atomic_write
from harness.record import read_run

ODEINT, DIFFRAX = "torchdiffeq odeint", "diffrax, jitted"
OURS = "torch_ACA"


def write(folder):
    """Write tables.md of the records in a folder."""
    folder = Path(folder)
    parts = ["# Benchmark\n\nWritten by `python -m benchmarks.plot` from the records beside it.\n"]
    complete = [name for name in CASES if records.is_complete(folder / name)]
    if complete:
        parts.append(_setting(folder, complete))
        if not any(read_run(folder / name)["environment"]["gpus"] for name in complete):  # they are of a CPU
            parts.append(_aims(folder))
    parts += [_TABLES[CASES[name].rows](folder, name) for name in complete]
    with atomic_write(folder / "tables.md") as file:
        file.write("\n".join(parts).encode())


def _setting(folder, complete):
    """What all was measured with; where cases differ, a paragraph for each setting, with its cases."""
    cases = {}
    for name in complete:
        cases.setdefault(_environment(read_run(folder / name)), []).append(name)
    several = len(cases) > 1
    lines = [f"{', '.join(names)}: {line}" if several else line for line, names in cases.items()]
    return "\n\n".join(lines) + (
        "\n\nTime: forward and backward, median over alternating rounds. x limit: over `NFE_acc * c_f` forward plus "
        "`NFE_acc * (c_fg + c_vjp)` backward, measured in the same round; us beyond: microseconds above that limit per "
        "NFE_acc, what a solver adds to an evaluation and its VJP. Gradient: in the initial state and all "
        "parameters, relative to a tight reference. Peak memory: in a fresh process, above what it held before the "
        "solve. Blank: not measured; the note says why.\n"
    )


def _environment(run):
    environment, arguments = run["environment"], run["arguments"]
    libraries = ", ".join(f"{name} {version}" for name, version in arguments["libraries"].items() if version)
    load = max(run["summary"]["load_before"][0], run["summary"]["load_after"][0])
    where = ", ".join(environment["gpus"]) if arguments["device"].startswith("cuda") else environment["cpu"]
    busy = " The machine was busy with other work (load above the threads): mind the times." * (
        load > environment["threads"] + 1
    )
    return (
        f"{where}, {environment['threads']} CPU thread(s), {arguments['clock']} clock, PyTorch "
        f"{environment['packages']['torch']}; {libraries}.{busy}"
    )


# what to reach: text, at most, and the ratio found in the records of a folder
AIMS = (
    ("aca, MLP, Dopri5: time / limit", 1.10, lambda f: _limit(f, "mlp_dopri5", "aca")),
    ("aca, MLP, Dopri5: time / torchdiffeq odeint", 1.0, lambda f: _beside(f, "mlp_dopri5", "aca", ODEINT)),
    ("aca, MLP, Heun-Euler: time / limit", 1.25, lambda f: _limit(f, "mlp_heun", "aca")),
    ("aca, three bodies, end point: time / limit", 1.25, lambda f: _limit(f, "three_body_end", "aca")),
    ("aca, field of NODE-18: time / limit", 1.03, lambda f: _limit(f, "conv", "aca")),
    ("aca, field of NODE-18: peak memory / best peer", 0.75, lambda f: _memory_beside_peers(f, "conv", "aca")),
    ("aca, 49 outputs: time / torchdiffeq odeint", 0.5, lambda f: _beside(f, "three_body_outputs", "aca", ODEINT)),
    (
        "aca compiled, 49 outputs: time / torchdiffeq odeint",
        0.2,
        lambda f: _beside(f, "three_body_outputs", "aca, compile", ODEINT),
    ),
    ("aca, memory unlimited, MLP: time / limit", 0.80, lambda f: _limit(f, "mlp_dopri5", "aca, memory=unlimited")),
    (
        "aca, memory unlimited, field of NODE-18: time / limit",
        0.80,
        lambda f: _limit(f, "conv", "aca, memory=unlimited"),
    ),
    (
        "aca compiled, three bodies, end point: time / limit",
        0.35,
        lambda f: _limit(f, "three_body_end", "aca, compile"),
    ),
    ("aca compiled, MLP, Dopri5: time / limit", 0.75, lambda f: _limit(f, "mlp_dopri5", "aca, compile")),
    ("aca compiled, field of NODE-18: time / limit", 0.85, lambda f: _limit(f, "conv", "aca, compile")),
    *(
        (f"aca compiled, {title}: time / diffrax", most, lambda f, case=case: _beside(f, case, "aca, compile", DIFFRAX))
        for case, title, most in (
            ("three_body_end", "three bodies, end point", 1.0),
            ("three_body_outputs", "three bodies, 49 outputs", 1.0),
            ("three_body_close", "close encounters", 1.0),
            ("mlp_dopri5", "MLP, Dopri5", 0.9),
            ("mlp_heun", "MLP, Heun-Euler", 0.9),
        )
    ),
    ("aca compiled, three bodies: first call, no code on disk / diffrax's", 2.0, lambda f: _first_call(f, "no_code")),
    ("aca compiled, three bodies: first call of a later process, seconds", 5.0, lambda f: _first_call(f, "later")),
    ("aca, peak memory per further step / a state", 1.2, lambda f: _growth(f, "aca, memory=states")),
    (
        "aca, memory of 50 states, many steps: time / all states",
        2.0,
        lambda f: _beside(f, "many_steps", "aca, memory=50", "aca, memory=states"),
    ),
    (
        "aca per_sample, rows at different speeds: time / torchode",
        1.0,
        lambda f: _beside(f, "rows_lotka_volterra", "aca, per_sample", "torchode, per row"),
    ),
    (
        "aca per_sample, MLP of 256 rows: time / torchode as it comes",
        0.75,
        lambda f: _beside(f, "rows_mlp", "aca, per_sample", "torchode, per row, as it comes"),
    ),
    (
        "aca per_sample compiled, rows at different speeds: time / diffrax vmap",
        2.0,
        lambda f: _beside(f, "rows_lotka_volterra", "aca, per_sample, compile", "diffrax, vmap"),
    ),
    (
        "Rodas5P, 256 rows of Robertson at 1e-3: time / diffrax Kvaerno5",
        0.7,
        lambda f: _at(f, "stiff_robertson_rows", 1e-3, "Rodas5P", "diffrax Kvaerno5, jitted"),
    ),
    (
        "Rodas5P compiled, Robertson at 1e-6: time / diffrax Kvaerno5",
        1.0,
        lambda f: _at(f, "stiff_robertson", 1e-6, "Rodas5P, compile", "diffrax Kvaerno5, jitted"),
    ),
    (
        "Rodas5P, diffusion and a learned reaction at 1e-3: time / Dopri5",
        0.02,
        lambda f: _at(f, "stiff_reaction_diffusion", 1e-3, "Rodas5P", "Dopri5"),
    ),
    (
        "Rodas5P, diffusion and a learned reaction: time / diffrax Kvaerno5 at equal gradient error",
        1.2,
        lambda f: _at_equal_error(f, "stiff_reaction_diffusion", "Rodas5P", "diffrax Kvaerno5, jitted"),
    ),
    ("slowest client program: time / torchdiffeq odeint", 1.1, lambda f: _slowest(f, "clients")),
    ("slowest of short solves: time / torchdiffeq odeint", 1.2, lambda f: _slowest(f, "short_solves")),
)


def _limit(folder, case, solver):
    record = records.read(folder, case)
    return record and record.to_limit(solver)


def _first_call(folder, when):
    """Seconds of the first call of a compiled loop; without code on disk over diffrax's."""
    found = records.read_first_calls(folder) or {}
    medians = {solver: _median(rows, when) for (problem, solver), rows in found.items() if "end point" in problem}
    ours, theirs = medians.get("aca, compile"), medians.get(DIFFRAX) if when == "no_code" else 1.0
    return ours / theirs if ours and theirs else None


def _median(rows, name):
    """Of what the rows have under a name; None where one has not."""
    values = [row.get(name) for row in rows]
    return None if None in values else median(values)


def _beside(folder, case, solver, other):
    record = records.read(folder, case)
    return record and record.to_solver(solver, other)


def _at(folder, case, tolerance, solver, other):
    record = (records.read_diagram(folder, case) or {}).get(tolerance)
    return record and record.to_solver(solver, other)


def _at_equal_error(folder, case, solver, other):
    """A solver's time over another's where their gradients have the same error: the geometric mean over the other's
    tolerances whose error is one that the solver reaches, between whose own it is interpolated (of logarithms)."""
    curves = [[], []]
    for record in (records.read_diagram(folder, case) or {}).values():
        for curve, name in zip(curves, (solver, other)):
            error, seconds = record.solvers.get(name, {}).get("gradient_error"), record.median(name)
            if error and seconds:
                curve.append((math.log(error), math.log(seconds)))
    if not all(curves):
        return None
    errors, seconds = zip(*sorted(curves[0]))
    inside = [(error, theirs) for error, theirs in curves[1] if errors[0] <= error <= errors[-1]]
    ratios = [float(np.interp(error, errors, seconds)) - theirs for error, theirs in inside]
    return math.exp(sum(ratios) / len(ratios)) if ratios else None


def _memory_beside_peers(folder, case, solver):
    record = records.read(folder, case)
    rows = record.solvers if record else {}
    peers = [r["peak_bytes"] for r in rows.values() if r["library"] != OURS and r.get("peak_bytes")]
    own = rows.get(solver, {}).get("peak_bytes")
    return own / min(peers) if own and peers else None


def _growth(folder, solver):
    rows = records.read_growth(folder)
    return rows and slope(rows.get(solver, [{}]))


def _slowest(folder, case):
    """The largest ratio of the programs of a case, the convolutional one with graphs kept; None if one is missing."""
    found = records.read_clients(folder, case) or {}
    ratios = [
        record.to_solver("aca, memory=unlimited" if program == "convolutional" else "aca", ODEINT)
        for program, record in found.items()
    ]
    return max(ratios) if ratios and None not in ratios else None


def _aims(folder):
    lines = []
    for text, most, find in AIMS:
        found = find(folder)
        lines.append([text, f"{most:.2f}", _ratio(found), "" if not found else "yes" if found <= most else "no"])
    return _table("Aims", ["ratio", "at most", "measured", "reached"], lines)


def _timed(folder, name):
    record = records.read(folder, name)
    lines = []
    for solver, row in record.solvers.items():
        lines.append([
            solver, _milliseconds(record.median(solver)), _ratio(record.to_limit(solver)),
            _number(record.beyond_limit(solver, row["n_evals_accepted"]), ".0f"),
            _ratio(record.to_solver(solver, ODEINT)), _count(row.get("nfe_forward")), _count(row.get("nfe_backward")),
            _error(row.get("state_error")), _error(row.get("gradient_error")), _megabytes(row.get("peak_bytes")),
            _note(row),
        ])  # fmt: skip
    n_evals = next(iter(record.solvers.values()))["n_evals_accepted"]
    once, kept = record.median(EVALUATIONS), record.median(VJPS)
    limit = _milliseconds(record.median(EVALUATIONS, VJPS))
    about = (
        f"Limit {limit} ms: NFE_acc {n_evals}, c_f {1e6 * once / n_evals:.1f} "
        f"us, c_fg + c_vjp {1e6 * kept / n_evals:.1f} us; {len(record.rounds)} rounds. Floor with graphs kept: "
        f"{_ratio(kept / (once + kept))} x limit.\n"
    )
    head = [
        "solver", "ms", "x limit", "us beyond", "x torchdiffeq", "NFE forward", "NFE backward", "state error",
        "gradient error", "peak MB", "note",
    ]  # fmt: skip
    return _table(record.title, head, lines, about)


def _diagram(folder, name):
    found = records.read_diagram(folder, name)
    counted = any(row.get("tries") is not None for record in found.values() for row in record.solvers.values())
    lines = []
    for tolerance, record in found.items():
        for solver, row in record.solvers.items():
            lines.append([
                f"{tolerance:.0e}", solver, _milliseconds(record.median(solver)), _error(row.get("state_error")),
                _error(row.get("gradient_error")), *[_count(row.get("tries"))] * counted,
                _count(row.get("nfe_forward")), _count(row.get("nfe_backward")), _note(row),
            ])  # fmt: skip
    head = ["tolerance", "solver", "ms", "state error", "gradient error", *["tries"] * counted, "NFE forward"]
    return _table(next(iter(found.values())).title, [*head, "NFE backward", "note"], lines)


def _memory(folder, name):
    found = records.read_growth(folder, name)
    counts = [row["n_accepted"] for row in next(iter(found.values()))]
    lines = []
    for solver, rows in found.items():
        peaks = [_megabytes(row.get("peak_bytes")) for row in rows]
        note = _short("; ".join(dict.fromkeys(row["failure"] for row in rows if row.get("failure"))))
        lines.append([solver, *peaks, _ratio(slope(rows)), note])
    state = next(iter(found.values()))[0]["state_bytes"]
    title = records.titled(name, read_run(folder / name))
    head = ["solver", *(f"{count} steps, MB" for count in counts), "states per further step", "note"]
    return _table(title, head, lines, f"A state is {state / 2**10:.0f} KiB.\n")


def _breakdown(folder, name):
    lines = []
    for row in records.read_breakdown(folder, name):
        parts = [_number(1e6 * row["parts"][part] / row["n_evals_accepted"], ".0f") for part in PARTS]
        limit = _number(1e6 * row["limit_seconds"] / row["n_evals_accepted"], ".0f")
        lines.append([row["problem"], row["solver"], limit, *parts])
    about = "Microseconds per NFE_acc, medians; the limit is what func and its VJPs take at the initial state.\n"
    title = records.titled(name, read_run(folder / name))
    return _table(title, ["problem", "solver", "limit", *PARTS], lines, about)


def _first_calls(folder, name):
    lines = []
    for (problem, solver), rows in records.read_first_calls(folder, name).items():
        seconds = [_number(_median(rows, when), ".1f") for when in ("no_code", "later")]
        note = _short("; ".join(dict.fromkeys(row["failure"] for row in rows if row.get("failure"))))
        lines.append([problem, solver, *seconds, note])
    about = (
        "Seconds of the first solve and its backward pass in a fresh process, medians. Without code on disk, PyTorch "
        "also tries what its compiler can do on this processor, once a machine.\n"
    )
    head = ["problem", "solver", "without code on disk", "a later process", "note"]
    return _table(records.titled(name, read_run(folder / name)), head, lines, about)


def _clients(folder, name):
    found = records.read_clients(folder, name)
    lines = []
    for program, record in found.items():
        for solver, row in record.solvers.items():
            lines.append([
                program.replace("_", " "), solver, _milliseconds(record.median(solver)),
                _ratio(record.to_solver(solver, ODEINT)), _error(row.get("gradient_difference")), _note(row),
            ])  # fmt: skip
    about = "Difference: of the gradient from that of torchdiffeq's odeint, relative.\n"
    head = ["program", "solver", "ms", "x torchdiffeq", "difference", "note"]
    return _table(next(iter(found.values())).title, head, lines, about)


_TABLES = {
    time_rows: _timed,
    diagram_rows: _diagram,
    growth_rows: _memory,
    breakdown_rows: _breakdown,
    first_call_rows: _first_calls,
    client_rows: _clients,
}


def _table(title, head, lines, about=""):
    rows = [head, ["---"] * len(head), *lines]
    return f"## {title}\n\n{about and about + chr(10)}" + "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _note(row):
    """Why a row is blank, or what was said in the first solve."""
    if row["status"] != "finished":
        return _short(row["status"])
    return _short("; ".join([*row["warnings"], *([row["failure"]] if row.get("failure") else [])]))


def _short(text):
    return textwrap.shorten(text.replace("|", "/"), 120, placeholder=" ...")


def _number(value, form):
    return "" if value is None else format(value, form)


def _milliseconds(seconds):
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _ratio(value):
    return _number(value, ".2f")


def _error(value):
    return _number(value, ".1e")


def _count(value):
    return _number(value, "d")


def _megabytes(value):
    return "" if value is None else f"{value / 1e6:.1f}"
