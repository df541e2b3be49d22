"""Every figure and table of the paper and its supplement, and where its counterpart lies here, or why there is none."""

from harness.tables import table

FIGURES = {
    "reconstruction": "[figure](van_der_pol/reconstruction/reconstruction.png)",
    "curves": "[figure](latent_ode_mujoco/table/figures/interpolation-curves.png)",
    "orbits": "[figure](three_body/paper/paper/figures/orbits.png)",
    "systems": "[figure](three_body/paper/systems.png)",
    "robustness": "[figure](cifar_classification/table/robustness.png), [tables](cifar_classification/tables.md)",
}
# The paper's by content, as not all of their numbers are known here; the supplement's by number
PLACES = (
    ("drawings of the naive method, the adjoint and ACA", "nothing to measure; see [CONTRIBUTING](../CONTRIBUTING.md)"),
    ("table 1: computation, memory, depth", "[figure](van_der_pol/depth/depth.png), [tables](van_der_pol/tables.md)"),
    ("figure: van der Pol, forward and reverse", FIGURES["reconstruction"]),
    ("figure: a photograph, forward and reverse", "[figure](van_der_pol/picture/picture.png)"),
    ("figure 6: gradient errors of dz/dt = kz", "[figure](van_der_pol/gradient_error/gradient_error.png)"),
    ("figure 7(a, b): CIFAR-10, accuracy against epoch and time",
     "[figure](cifar_classification/table/methods.png); against time: not drawn, as the processor was shared"),
    ("figure 7(c, d): NODE-18 and ResNet", "[figure](cifar_classification/table/networks.png)"),
    ("table 2: errors of networks on CIFAR-10 by test solver",
     "[here](#images-node-18-on-cifar); ResNet-50, ResNet-101, earlier neural ODEs: quoted there, not run here"),
    ("table 3: reliability of repeated runs",
     "[tables](cifar_classification/tables.md); the paper's values are not known"),
    ("table 4: latent ODE on hopper data", "[here](#time-series-latent-ode-on-hopper-data-table-4)"),
    ("table of the three bodies' errors", "[tables](three_body/tables.md); the paper's values are not known"),
    ("figure: trajectories of three bodies, predicted", FIGURES["orbits"]),
    ("supplement, figure 1: van der Pol, forward and reverse", FIGURES["reconstruction"]),
    ("supplement, tables 1 and 2: growth of the error with other test solvers", FIGURES["robustness"]),
    ("supplement, figures 2 to 4: test error of the latent ODE by epoch, 10, 20 and 50 % observed", FIGURES["curves"]),
    ("supplement, table 3: settings of the three-body runs", "[settings](../three_body/README.md#settings)"),
    ("supplement, figures 5 to 12: orbits in space, truth and prediction of each of the eight models",
     f"{FIGURES['orbits']}, in a plane for each body"),
    ("supplement, figures 13 to 15: orbits of ODE-ACA from three other initial conditions",
     f"{FIGURES['systems']}, of five; the paper's initial conditions are not known"),
    ("supplement, videos of the three bodies", "[animation](three_body/paper/paper/figures/orbits.gif)"),
)  # fmt: skip


def section():
    """The list as a section of results/README.md."""
    listed = table(["in the paper", "counterpart"], [list(row) for row in PLACES])
    return f"## Every figure and table of the paper\n\n{listed}"
