"""Every figure and table of the paper and its supplement, and where its counterpart lies here, or why there is none."""

from harness.tables import table

# By content, as not all numbers of the paper's figures are known here
PLACES = (
    ("drawings of the naive method, the adjoint and ACA", "nothing to measure; see [CONTRIBUTING](../CONTRIBUTING.md)"),
    ("table 1: computation, memory, depth", "[figure](van_der_pol/depth/depth.png), [tables](van_der_pol/tables.md)"),
    ("figure: van der Pol, forward and reverse", "[figure](van_der_pol/reconstruction/reconstruction.png)"),
    ("figure: a photograph, forward and reverse", "[figure](van_der_pol/picture/picture.png)"),
    ("figure 6: gradient errors of dz/dt = kz", "[figure](van_der_pol/gradient_error/gradient_error.png)"),
    ("figure 7(a, b): CIFAR-10, accuracy against epoch and time",
     "[figure](cifar_classification/table/methods.png); against time: not drawn, as the processor was shared"),
    ("figure 7(c, d): NODE-18 and ResNet", "[figure](cifar_classification/table/networks.png), three runs"),
    ("table 2: errors of networks on CIFAR-10 by test solver",
     "[here](#images-node-18-on-cifar); ResNet-50, ResNet-101, earlier neural ODEs: quoted there, not run here"),
    ("table 3: reliability of repeated runs",
     "[tables](cifar_classification/tables.md); the paper's values are not known"),
    ("table 4: latent ODE on hopper data", "[here](#time-series-latent-ode-on-hopper-data-table-4)"),
    ("table of the three bodies' errors", "[tables](three_body/tables.md); the paper's values are not known"),
    ("figure: trajectories of three bodies, predicted",
     "[animation](three_body/paper/paper/figures/orbits.gif), "
     "[orbits](three_body/paper/paper/figures/orbits-ode-aca.png)"),
    ("supplement, tables 1 and 2: other test solvers", "[tables](cifar_classification/tables.md)"),
    ("supplement, figures of the latent ODE's test error by epoch",
     "[figure](latent_ode_mujoco/table/figures/interpolation-10-curves.png), for 10% observed"),
    ("supplement, figures 13 to 15", "none: what they show in detail is not known here"),
)  # fmt: skip


def section():
    """The list as a section of results/README.md."""
    listed = table(["in the paper", "counterpart"], [list(row) for row in PLACES])
    return f"## Every figure and table of the paper\n\n{listed}"
