"""Draw the figures and write the tables of a benchmark from its records; what was not run is left out."""

from pathlib import Path
from statistics import median

from benchmarks import overview, records, tables
from benchmarks.breakdown import PARTS
from benchmarks.cases import (
    CASES,
    breakdown_rows,
    client_rows,
    diagram_rows,
    first_call_rows,
    growth_rows,
    time_rows,
)
from harness.cli import ArgumentParser, UsageError, run_main
from harness.files import check_folder
from harness.plots import METHOD_COLOURS, METHOD_STYLES, new_figure, save_figure
from harness.record import read_run
from harness.tables import add_record_argument, pack_runs

# Ours in the colours that the gradient methods have everywhere; the peers in Paul Tol's "muted" scheme
COLOURS = {
    "aca": METHOD_COLOURS["aca"],
    "aca, memory=unlimited": METHOD_COLOURS["direct"],
    "aca, memory=50": "#44AA99",
    "aca, memory=states": "#661100",
    "aca, compile": "#332288",
    "aca, compile steps": "#6699CC",
    "aca, CUDA graphs": "#88CCEE",
    "naive": METHOD_COLOURS["naive"],
    "adjoint": METHOD_COLOURS["adjoint"],
    "torchdiffeq odeint": "#117733",
    "torchdiffeq odeint_adjoint": "#999933",
    "TorchDiffEqPack ACA": "#CC6677",
    "torchode": "#AA4499",
    "diffrax, jitted": "#444444",
    "Rodas5P": METHOD_COLOURS["aca"],
    "Rodas5P, compile": METHOD_COLOURS["adjoint"],
    "Rodas5P, per_sample": "#44AA99",
    "Rodas5P, per_sample, compile": "#661100",
    "auto": METHOD_COLOURS["direct"],
    "Dopri5": "#88CCEE",
    "diffrax Kvaerno5, jitted": "#444444",
    "scipy Radau, forward": "#DDCC77",
    "aca, per_sample": METHOD_COLOURS["direct"],
    "aca, per_sample, compile": METHOD_COLOURS["adjoint"],
    "aca, rows jointly": METHOD_COLOURS["aca"],
    "torchode, per row": "#AA4499",
    "torchode, per row, as it comes": "#CC6677",
    "diffrax, vmap": "#444444",
}
OURS, PEER = "-", "--"
# they tell solvers apart in grey print
MARKERS = dict(zip(COLOURS, "DP*Xv<>" * len(COLOURS)))
MARKERS |= {name: METHOD_STYLES[name][1] for name in ("aca", "naive", "adjoint")}


def main(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", help="folder of the records, such as results/benchmarks/full")
    add_record_argument(parser)
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of records")
    if not any(records.is_complete(folder / name) for name in CASES):
        raise UsageError(f"{folder} holds no complete record of a case, such as {folder / next(iter(CASES))}")
    check_folder(folder)
    if args.record:
        pack_runs(folder)
    drawn = render(folder)
    left = [name for name in CASES if name not in drawn]
    print(f"drawn: {', '.join(drawn) or 'nothing'}; left out: {', '.join(left) or 'nothing'}")


def render(folder):
    """Write tables.md, a figure for each complete case of a folder and one of all; returns the names of these cases."""
    folder = Path(folder)
    tables.write(folder)
    drawn = [name for name in CASES if records.is_complete(folder / name)]
    for name in drawn:
        save_figure(_FIGURES[CASES[name].rows](folder, name), folder / name / f"{name}.png")
    overview.draw(folder, COLOURS, MARKERS)
    return drawn


def timed(folder, name):
    """Times over the limit: a bar for the median, a dot for each round."""
    record = records.read(folder, name)
    shown = [solver for solver in record.solvers if record.to_limit(solver)]
    figure, ax = new_figure(width=7.0, height=1.0 + 0.35 * len(shown))
    for height, solver in enumerate(reversed(shown)):
        ratios = record.each_to_limit(solver)
        ax.barh(height, record.to_limit(solver), color=COLOURS[solver], alpha=0.6)
        ax.plot(ratios, [height] * len(ratios), ".", ms=3, color=COLOURS[solver])
    ax.axvline(1.0, color="black", lw=1)
    ax.set_yticks(range(len(shown)), list(reversed(shown)))
    ax.set(xlabel="time of forward and backward pass / limit", title=record.title, xlim=(0, None))
    return figure


def diagram(folder, name):
    """Error of state and gradient against time."""
    found = records.read_diagram(folder, name)
    figure, axes = new_figure(1, 2, width=5.5, height=4.5, sharey=True)
    solvers = dict.fromkeys(solver for record in found.values() for solver in record.solvers)
    for ax, what in zip(axes, ("state", "gradient")):
        for solver in solvers:
            points = [
                (record.solvers[solver][f"{what}_error"], 1e3 * record.median(solver))
                for record in found.values()
                if record.median(solver) is not None and record.solvers[solver][f"{what}_error"] is not None
            ]
            if points:
                style = PEER if next(iter(found.values())).solvers[solver]["library"] != tables.OURS else OURS
                ax.plot(*zip(*points), style, marker=MARKERS[solver], ms=5, color=COLOURS[solver], label=solver)
        ax.set(xscale="log", yscale="log", xlabel=f"relative error of the {what}")
        ax.invert_xaxis()
    axes[0].set_ylabel("forward and backward pass (ms)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    figure.suptitle(f"{next(iter(found.values())).title}: tolerances from {max(found):.0e} to {min(found):.0e}")
    return figure


def growth(folder, name):
    """Peak memory against the number of steps."""
    found = records.read_growth(folder, name)
    figure, ax = new_figure(width=8.0, height=4.5)
    for solver, rows in found.items():
        done = [row for row in rows if "peak_bytes" in row]
        style = OURS if solver.startswith(("aca", "naive", "adjoint")) else PEER
        ax.plot(
            [row["n_accepted"] for row in done], [row["peak_bytes"] / 1e6 for row in done], style, ms=5,
            marker=MARKERS[solver], color=COLOURS[solver], label=solver,
        )  # fmt: skip
    rows = next(iter(found.values()))
    states = [row["n_accepted"] * row["state_bytes"] / 1e6 for row in rows]
    ax.plot([row["n_accepted"] for row in rows], states, ":", color="black", label="one state per step")
    ax.set(xscale="log", yscale="log", xlabel="accepted steps", ylabel="peak memory above start (MB)")
    ax.set_title(records.titled(name, read_run(folder / name)))
    figure.legend(loc="outside right center", fontsize="small")
    return figure


def breakdown(folder, name):
    """Parts of the time over the limit, stacked."""
    rows = records.read_breakdown(folder, name)
    figure, ax = new_figure(width=8.0, height=1.5 + 0.35 * len(rows))
    left = [0.0] * len(rows)
    for number, part in enumerate(PARTS):
        shares = [row["parts"][part] / row["limit_seconds"] for row in rows]
        ax.barh(range(len(rows)), shares, left=left, color=f"C{number}", label=part)
        left = [a + b for a, b in zip(left, shares)]
    ax.axvline(1.0, color="black", lw=1)
    ax.set_yticks(range(len(rows)), [f"{row['problem']}: {row['solver']}" for row in rows])
    ax.invert_yaxis()
    ax.set(xlabel="time / limit", title=records.titled(name, read_run(folder / name)))
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure


def first_calls(folder, name):
    """Seconds of first calls: a bar without code on disk, one later, a dot for each repetition."""
    found = records.read_first_calls(folder, name)
    shown = {key: rows for key, rows in found.items() if not any("failure" in row for row in rows)}
    figure, ax = new_figure(width=7.0, height=1.0 + 0.6 * len(shown))
    for height, rows in enumerate(shown.values()):
        for place, (when, label) in enumerate({"no_code": "without code on disk", "later": "a later process"}.items()):
            values, at = [row[when] for row in rows], height + 0.4 * place - 0.2
            ax.barh(at, median(values), 0.38, color=f"C{place}", alpha=0.6, label=None if height else label)
            ax.plot(values, [at] * len(values), ".", ms=4, color=f"C{place}")
    ax.set_yticks(range(len(shown)), [f"{problem}: {solver}" for problem, solver in shown])
    ax.invert_yaxis()
    ax.set(xlabel="seconds of the first call", title=records.titled(name, read_run(folder / name)))
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


def clients(folder, name):
    """Times of client programs over torchdiffeq's: a bar for the median, a dot for each round."""
    found = records.read_clients(folder, name)
    shown = [
        (program, solver, record)
        for program, record in found.items()
        for solver in record.solvers
        if solver != tables.ODEINT and record.to_solver(solver, tables.ODEINT)
    ]
    figure, ax = new_figure(width=7.0, height=1.0 + 0.3 * len(shown))
    for height, (_, solver, record) in enumerate(shown):
        ratios = record.each_to_solver(solver, tables.ODEINT)
        ax.barh(height, record.to_solver(solver, tables.ODEINT), color=COLOURS[solver], alpha=0.6)
        ax.plot(ratios, [height] * len(ratios), ".", ms=3, color=COLOURS[solver])
    ax.axvline(1.0, color="black", lw=1)
    ax.set_yticks(range(len(shown)), [f"{program.replace('_', ' ')}: {solver}" for program, solver, _ in shown])
    ax.invert_yaxis()
    title = next(iter(found.values())).title
    ax.set(xlabel="time of forward and backward pass / torchdiffeq odeint", title=title, xlim=(0, None))
    return figure


_FIGURES = {
    time_rows: timed,
    diagram_rows: diagram,
    growth_rows: growth,
    breakdown_rows: breakdown,
    first_call_rows: first_calls,
    client_rows: clients,
}


if __name__ == "__main__":
    run_main(main)
