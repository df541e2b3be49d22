"""The error of each method's gradient against the tolerance, on one batch of a trained NODE-18, in float64.

The reference is the gradient of ACA with Dopri5 at a tolerance where the continuous adjoint, which is another way to
it, gives the same; how far the two are apart is recorded with it. BatchNorm takes the batch's own statistics, as in
training.
"""

import itertools
import os

import torch
from torch.nn import functional

from cifar_classification import data
from cifar_classification.experiment import Cifar
from cifar_classification.models import ode_blocks, set_solver, solver_stats
from cifar_classification.runs import GRADIENT_ERROR
from cifar_classification.training import build_model
from harness import packed
from harness.cli import ArgumentParser, UsageError, positive_int, run_main
from harness.environment import origins
from harness.experiment import LAST
from harness.files import check_folder
from harness.plots import look, new_figure, save_figure
from harness.progress import progress
from harness.record import Run, read_metrics, read_run
from harness.solvers import MAX_EVALS, MEMORY
from harness.tables import table
from harness.training import read_checkpoint
from torch_ACA import SolverError

FOLDER = Cifar().results / GRADIENT_ERROR
GRADIENTS = ("aca", "naive", "adjoint")
METHODS = {"RK12": "Heun-Euler", "Dopri5": "Dopri5"}
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
PAPERS = 1e-2  # tolerance of ACA
REFERENCE = {"method": "Dopri5", "rtol": 1e-8, "atol": 1e-8}


def parser():
    result = ArgumentParser(__doc__.partition("\n\n")[0])
    result.add_argument("--resume", required=True, metavar="RUN", help="run folder of a trained NODE-18")
    result.add_argument("--images", type=positive_int, default=4, metavar="N", help="the first N test images")
    folder = "folder of the images; $CIFAR_DATA sets the default"
    result.add_argument("--data", default=os.environ.get("CIFAR_DATA"), metavar="DIR", help=folder)
    result.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    result.add_argument("--out", metavar="DIR", help="run folder; the default is named after the training's profile")
    result.add_argument("--overwrite", action="store_true", help="replace the record that the run folder already holds")
    return result


def main(argv=None):
    args = parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    state, path = read_checkpoint(Cifar(), args.resume, LAST)
    settings = state["settings"]
    if settings["model"] != "ode":
        raise UsageError(f"{path.parent} holds a discrete network: there is no solver to compare")
    folder = args.out or FOLDER / settings["profile"]
    check_folder(folder)
    images = data.load(settings["dataset"], args.data)
    pixels, labels = next(images.test_batches(args.images))
    model = build_model(settings | {"gradient": "aca", "compile": None, "memory": None})
    model.load_state_dict(state["model"])
    batch = pixels.double(), labels
    arguments = {name: value for name, value in vars(args).items() if name not in ("data", "resume")}
    trained = settings | {"trained": Cifar().title(settings), "epoch": state["epoch"]}
    run = Run.start(folder, arguments, settings=trained, overwrite=args.overwrite)
    measure(model.double().train(), batch, run)
    print(section(run.folder))


def measure(model, batch, run):
    """A row of the record for each solver, gradient method and tolerance."""
    reference, _ = gradient(model, batch, "aca", **REFERENCE)
    other, _ = gradient(model, batch, "adjoint", **REFERENCE)
    cases = list(itertools.product(METHODS, GRADIENTS, TOLERANCES))
    for step, (method, name, tolerance) in enumerate(progress(cases, desc="gradients")):
        row = {"method": method, "gradient": name, "tolerance": tolerance}
        try:
            found, counts = gradient(model, batch, name, method=method, rtol=tolerance, atol=tolerance)
        except SolverError as error:
            run.log(step, **row, failure=str(error))
            continue
        errors = {part: relative(found[part], reference[part]) for part in found}
        run.log(step, **row, errors=errors, n_f_evals=counts[0], n_backward_f_evals=counts[1])
    between = {part: relative(other[part], reference[part]) for part in other}
    run.finish({"reference": REFERENCE, "adjoint_beside_reference": between, "images": len(batch[1])})


def gradient(model, batch, name, **solver):
    """The gradient of the loss by part of the network, each as one vector, and the evaluations of the vector fields per
    block, forward and backward."""
    memory = {"memory": MEMORY} if name == "aca" else {"memory": None}
    set_solver(model, gradient=name, h=None, max_evals=MAX_EVALS, **memory, **solver)
    images, labels = batch
    loss = functional.cross_entropy(model(images), labels)
    found = parts(model, torch.autograd.grad(loss, list(model.parameters())))
    return found, solver_stats(model).double().mean(0)[:2].tolist()


def parts(model, gradients):
    """{part of the network: its gradient as one vector}: all of it, and the field of each stage."""
    of = dict(zip(model.parameters(), gradients, strict=True))

    def joined(parameters):
        return torch.cat([of[parameter].flatten() for parameter in parameters])

    fields = {f"stage {i}": joined(block.func.parameters()) for i, block in enumerate(ode_blocks(model), start=1)}
    return {"all": joined(model.parameters()), **fields}


def relative(found, reference):
    return float((found - reference).norm() / reference.norm())


# What is shown of it


def finished(folder):
    return packed.read(folder, "summary.json") is not None


def section(folder):
    """Table and words on a record, as text."""
    rows, run = read_metrics(folder), read_run(folder)
    header = ["solver", "gradient", *(f"{tolerance:g}" for tolerance in TOLERANCES), "by stage, at 0.01"]
    lines = []
    for (method, shown), name in itertools.product(METHODS.items(), GRADIENTS):
        own = {row["tolerance"]: row for row in rows if (row["method"], row["gradient"]) == (method, name)}
        cells = [f"{row['errors']['all']:.1e}" if "errors" in row else "failed" for row in own.values()]
        stages = own[PAPERS].get("errors", {})
        lines.append([shown, name, *cells, " ".join(f"{e:.1e}" for part, e in stages.items() if part != "all")])
    summary, trained = run["summary"], run["settings"]["trained"]
    at_papers = {row["gradient"]: row["errors"]["all"] for row in rows
                 if (row["method"], row["tolerance"]) == ("RK12", PAPERS) and "errors" in row}  # fmt: skip
    beside = f"{at_papers['adjoint'] / at_papers['aca']:.2f}" if {"adjoint", "aca"} <= at_papers.keys() else "?"
    return (
        f"{table(header, lines)}\nRelative error of the gradient of the loss, by tolerance: {summary['images']} "
        f"images, float64, a trained network: {trained}. The reference is ACA with Dopri5 at "
        f"{summary['reference']['rtol']:g}; the adjoint at the same tolerance is "
        f"{summary['adjoint_beside_reference']['all']:.0e} away from it. By stage: the parameters of each stage's "
        f"field, from the input to the output. With Heun-Euler at {PAPERS:g}, as in the paper, the adjoint's error is "
        f"{beside} times ACA's. {origins([('all', run['environment'])])}\n"
    )


def draw(folder):
    """Error against tolerance, and by stage at the paper's tolerance."""
    rows = [row for row in read_metrics(folder) if "errors" in row]
    figure, axes = new_figure(1, 3, width=3.6, height=3.4)
    for ax, (method, shown) in zip(axes, METHODS.items()):
        for name in GRADIENTS:
            own = [row for row in rows if (row["method"], row["gradient"]) == (method, name)]
            ax.plot([row["tolerance"] for row in own], [row["errors"]["all"] for row in own],
                    label=name, **look(name, markers=True))  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel="tolerance", title=shown)
        ax.invert_xaxis()
    for row in rows:
        if (row["method"], row["tolerance"]) == ("RK12", PAPERS):
            errors = [error for part, error in row["errors"].items() if part != "all"]
            axes[-1].plot(range(1, len(errors) + 1), errors, **look(row["gradient"], markers=True))
    axes[0].set_ylabel("relative error of the gradient")
    axes[0].legend(fontsize="small")
    axes[-1].set(yscale="log", xlabel="stage", title=f"Heun-Euler at {PAPERS:g}, by stage")
    axes[-1].set_xticks(range(1, 5))
    figure.suptitle(f"Gradients of one batch, {read_run(folder)['settings']['trained']}", fontsize="medium")
    return figure


def render(root):
    """Write the figures of the records in a folder of results; returns the folders that have one."""
    found = [folder for folder in packed.folders(root, "run.json") if folder.parent.name == GRADIENT_ERROR]
    found = [folder for folder in found if finished(folder)]
    for folder in found:
        save_figure(draw(folder), folder / "gradient_error.png")
    return found


if __name__ == "__main__":
    run_main(main)
