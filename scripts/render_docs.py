"""Write what comes from the code or from records: parts between marks in README.md and docs/, a figure there, and the
page results/README.md.

A part stands between ``<!-- NAME: written by scripts/render_docs.py -->`` and ``<!-- end of NAME -->``.
"""

import argparse
import re
import sys
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import code_map  # noqa: E402  these lie beside this script
import results_page  # noqa: E402

from cifar_classification import report as cifar  # noqa: E402  ROOT has to be known first
from harness import packed  # noqa: E402
from harness.files import write_text  # noqa: E402
from harness.plots import colour, look, new_figure, save_figure  # noqa: E402
from harness.tables import spread, table  # noqa: E402
from latent_ode_mujoco import report as latent_ode  # noqa: E402
from three_body import report as three_body  # noqa: E402
from torch_ACA import METHODS  # noqa: E402
from torch_ACA import methods as known  # noqa: E402
from torch_ACA.scipy_solver import Scipy  # noqa: E402
from torch_ACA.solver_options import TEXTS, SolverOptions  # noqa: E402
from torch_ACA.steppers.base import LINEARISE  # noqa: E402
from van_der_pol import records  # noqa: E402

FIGURE = ROOT / "docs" / "figures" / "why_aca.png"
ALSO = {"ALF": "`sym12async` in `odesolve`", "auto": "`Dopri5` and `Rodas5P` in turn"}  # names elsewhere, or parts
COMPARED = ("aca", "adjoint", "naive")
RTOL = 1e-5  # of the row of van der Pol
RESULTS = "results"  # folder of the links, seen from README.md


def methods():
    """The table of methods: one row for each, whatever its names."""
    names = {}
    for name in METHODS:
        names.setdefault(known[name], []).append(name)
    rows = [
        [
            f"`{name}`",
            str(method.order),
            f"{method.stages - 1} + 1 shared" if getattr(method, "fsal", False) else str(method.stages),
            ("adaptive" if method.adaptive else "fixed") + (", stiff" if LINEARISE in method.abilities else ""),
            str(method.dense_order),
            ", ".join(f"`{other}`" for other in others) or ALSO.get(name, ""),
        ]
        for method, (name, *others) in names.items()
    ]
    rows.append([f"`{Scipy.name}`", "", "", "adaptive, stiff", "", f"scipy's {Scipy.solver}, BDF, Radau and others"])
    return table(["method", "order", "stages", "steps", "order of dense output", "also known as"], rows)


def keywords():
    """The table of keywords: each with its default and its meaning, as `help(solve)` has them."""
    rows = [
        [f"`{field.name}`", f"`{field.default!r}`", re.sub(r"\s+", " ", TEXTS[field.name]).replace("``", "`")]
        for field in fields(SolverOptions)
    ]
    return table(["keyword", "default", "meaning"], rows)


def results():
    """The main numbers of each experiment beside the paper's."""
    rows = [*van_der_pol_rows(), *three_body_rows(), *latent_ode_rows(), *cifar_rows()]
    header = ["experiment", "measured", *(f"{name}, here" for name in COMPARED), "in the paper", "scale here"]
    holds, fails, open_ = results_page.counted(results_page.verdicts(results_page.parts()))
    return (
        f"{table(header, rows)}\nOf the {holds + fails + open_} claims that were looked at, {holds} hold here, {fails} "
        f"do not, and {open_} are undecided: [all of them](results/README.md).\n"
    )


def van_der_pol_rows():
    folder = records.RESULTS / "gradient_error"
    found = {row["gradient"]: row for row in gradient_errors() if row["rtol"] == RTOL}
    cells = [f"{found[name]['error_start']:.2g}" for name in COMPARED]
    what = f"gradient in y(0), relative error, rtol {RTOL:g}"
    yield [link("van der Pol", packed.source(folder)), what, *cells, "-", f"T = {found['aca']['horizon']:g}"]


def three_body_rows():
    rows = [row for row in three_body.collect(three_body.RESULTS) if (row["profile"], row["system"]) == ("paper",) * 2]
    for model, what in {"ode": "three bodies, known law", "node": "three bodies, neural field"}.items():
        found = [[row["mse"] for row in rows if row["label"] == f"{model}-{name}"] for name in COMPARED]
        *some, last = map(len, found)
        counts = f"{', '.join(map(str, some))} and {last}" if {*some} != {last} else str(last)
        runs = f"the paper's settings, {counts} seeds"
        cells = [spread(values, ".2g") for values in found]
        yield [link(what, three_body.RESULTS / "tables.md"), "MSE on [0, 2]", *cells, "-", runs]


def latent_ode_rows():
    fraction = latent_ode.FRACTIONS[0]
    rows = [row for row in latent_ode.collect(latent_ode.RESULTS) if row["profile"] == "table"]
    rows = [row for row in rows if (row["task"], row["sample"]) == ("interpolation", fraction)]
    found = [[100 * row["mse"] for row in rows if row["label"] == f"latent-ode-{name}"] for name in COMPARED]
    cells = [spread(values, ".2f") for values in found]
    quoted = latent_ode.QUOTED["Zhuang et al."]
    quoted = " / ".join(f"{quoted[f'latent-ode-{name}'][0]:g}" for name in COMPARED)
    scale = ", ".join(latent_ode.joint_words(rows).removeprefix("scaled down: ").split(", ")[:2])
    what = f"test MSE x 0.01, {fraction:.0%} observed"
    yield [link("latent ODE, hopper", latent_ode.RESULTS / "tables.md"), what, *cells, quoted, f"{scale}, and more"]


def cifar_rows():
    runs = cifar.collect(cifar.RESULTS)
    chosen = {name: cifar.of_place(runs, "table", "cifar10", name) for name in COMPARED}
    cells = [spread([100 * run.summary["test_accuracy"] for run in chosen[name]], ".1f", " %") for name in COMPARED]
    quoted = " / ".join(f"{cifar.PAPER['methods'][name]['accuracy']:g} %" for name in COMPARED)
    scale = chosen["aca"][0].title.partition("scaled down: ")[2]
    yield [link("NODE-18 on CIFAR-10", cifar.RESULTS / "tables.md"), "test accuracy", *cells, quoted, scale]


def gradient_errors():
    """Errors of gradients on van der Pol by tolerance, those of this package."""
    return records.read(records.RESULTS / "gradient_error", problem="van der Pol", library="torch_ACA")


def link(text, path):
    return f"[{text}]({RESULTS}/{path.relative_to(ROOT / 'results').as_posix()})"


def figure():
    """The point of ACA in two panels: the adjoint leaves the trajectory, and its gradient suffers."""
    drawing, (phase, errors) = new_figure(1, 2, width=5.2, height=3.9)
    forward, *backward = records.read(records.RESULTS / "reconstruction", kind="trajectory")
    seen = {row["label"]: list(zip(*row["y"])) for row in backward}
    phase.plot(*zip(*forward["y"]), color=colour("truth"), lw=1, label="solved forward from y(0)")
    phase.plot(*seen["adjoint"], label="adjoint: solved back from y(T)", **look("adjoint", linewidth=2))
    phase.plot(*seen["aca"], label="ACA: replayed steps", **look("aca", markers=True, linestyle=""))
    phase.plot(*forward["y"][0], "*", ms=12, color=colour("truth"))
    phase.annotate("y(0)", forward["y"][0], xytext=(-6, 9), textcoords="offset points")
    phase.plot(*backward[0]["y"][0], "X", ms=9, color=colour("adjoint"))
    phase.set(xlabel="$y_1$", ylabel="$y_2$", title="What the backward pass sees", ylim=(-1.35, 1.75))
    phase.legend(fontsize="small", loc="upper right")
    for name, text in {"adjoint": "adjoint", "aca": "ACA"}.items():
        rows = [row for row in gradient_errors() if row["gradient"] == name]
        done = [row for row in rows if row["error_start"] is not None]
        points = zip(*((row["rtol"], row["error_start"]) for row in done))
        errors.plot(*points, label=text, **look(name, markers=True))
        lost = [row["rtol"] for row in rows if row["error_start"] is None]
        if lost:
            place = {"transform": errors.get_xaxis_transform(), "label": f"{text}: the solve back failed"}
            errors.plot(lost, [0.95] * len(lost), "x", ms=9, color=colour(name), **place)
    errors.set(
        xscale="log", yscale="log", xlabel="rtol", ylabel="relative error", title="Error of the gradient in y(0)"
    )
    errors.set_ylim(top=5)
    errors.invert_xaxis()
    errors.legend(fontsize="small")
    return drawing


PARTS = {"methods": methods, "keywords": keywords, "results": results, "code": code_map.code_map}
PAGE = ROOT / "results" / "README.md"  # written as a whole


def rendered(text):
    """A page with its parts as they should be."""
    for name, part in PARTS.items():
        start, end = f"<!-- {name}: written by scripts/render_docs.py -->\n", f"<!-- end of {name} -->"
        pattern = re.escape(start) + ".*?" + re.escape(end)
        if start in text:
            new = start + part() + end
            text = re.sub(pattern, lambda match, new=new: new, text, flags=re.DOTALL)
    return text


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for page in pages():
        text = page.read_text()
        if rendered(text) != text:
            page.write_text(rendered(text))
            print(f"written: {page.relative_to(ROOT)}")
    write_text(PAGE, results_page.page())
    save_figure(figure(), FIGURE)


if __name__ == "__main__":
    main()
