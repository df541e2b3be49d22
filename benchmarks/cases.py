"""The cases of the benchmark: which problem, which solvers, what is measured."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from benchmarks import breakdown, clients, fresh_process, problems, row_problems, stiff
from benchmarks.limit import Limit
from benchmarks.measure import alternating, checked, checked_client
from benchmarks.solvers import DROP_INS
from harness.progress import progress

PEERS = ("torchdiffeq odeint", "torchdiffeq odeint_adjoint", "TorchDiffEqPack ACA", "torchode", "diffrax, jitted")
COMPILED = ("aca, compile", "aca, compile steps", "aca, CUDA graphs")
TIMED = ("aca", "aca, memory=states", "aca, memory=unlimited", *COMPILED, "naive", "adjoint", *PEERS)
DIAGRAM = ("aca", "aca, compile", "adjoint", *PEERS)
GROWTH = ("aca", "aca, memory=states", "aca, memory=unlimited", "aca, memory=50", "naive", "adjoint", *PEERS)
BUDGET = ("aca", "aca, memory=states", "aca, memory=unlimited", "aca, memory=50")
GENERATED = ("aca, compile", "aca, compile steps", "diffrax, jitted")
STIFF = ("Rodas5P", "Rodas5P, compile", "auto", "diffrax Kvaerno5, jitted", "scipy Radau, forward")
STIFF_ROWS = (*STIFF, "Rodas5P, per_sample", "Rodas5P, per_sample, compile")
TORCHODE_ROWS = ("torchode, per row", "torchode, per row, as it comes")
ROWS = ("aca, per_sample", "aca, per_sample, compile", "aca, rows jointly", *TORCHODE_ROWS, "diffrax, vmap")
TOLERANCES = tuple(10.0**-i for i in range(3, 10))
EVALUATIONS, VJPS = "limit: evaluations", "limit: VJPs"  # names of what `Limit` does in the rounds


@dataclass(frozen=True)
class Case:
    """``rows(case, options)`` yields the rows of the record; ``problems``: names in `problems.PROBLEMS` or
    `stiff.PROBLEMS`, or of programs in `clients`; ``tolerances``: of a diagram."""

    title: str
    rows: Callable
    problems: tuple
    solvers: tuple
    memory: bool = False
    tolerances: tuple = TOLERANCES


@dataclass(frozen=True)
class Options:
    """How to measure. ``rounds``: (at least, at most); ``seconds``: of rounds, per case; ``only``: solvers, or None."""

    seed: int
    quick: bool
    device: str
    threads: int
    clock: str
    rounds: tuple
    seconds: float
    only: tuple | None = None

    def build(self, name, **options):
        known = problems.PROBLEMS | row_problems.PROBLEMS | stiff.PROBLEMS
        return problems.build(name, known, seed=self.seed, quick=self.quick, device=self.device, **options)

    def chosen(self, solvers):
        return [name for name in solvers if self.only is None or name in self.only]

    @property
    def of_process(self):
        """What a fresh process is to be told."""
        return {"seed": self.seed, "quick": self.quick, "device": self.device, "threads": self.threads}

    def peak_memory(self, problem, solver):
        return fresh_process.in_fresh_process("peak_bytes", problem, solver, **self.of_process)


def time_rows(case, options):
    """A row per solver with its first solve and its memory, then a row per round with the seconds of all."""
    (name,) = case.problems
    problem = options.build(name)
    limit = Limit(problem, problem.accepted_evaluations())
    reference = problem.reference_solution()
    calls = {EVALUATIONS: limit.evaluations, VJPS: limit.vjps}
    for solver in progress(options.chosen(case.solvers), desc=f"{name}: first solves"):
        prepared, row = checked(solver, problem, reference)
        if prepared:
            calls[solver] = prepared
            if case.memory:
                row |= options.peak_memory(name, solver)
        yield {"kind": "solver", "n_evals_accepted": limit.n_evals, **row}
    for seconds in progress(_rounds(calls, options, options.seconds), total=options.rounds[1], desc=name):
        yield {"kind": "round", "times": seconds}


def diagram_rows(case, options):
    """Errors and times over tolerances: a row per solver and tolerance, then a row per round of that tolerance."""
    (name,) = case.problems
    reference = options.build(name).reference_solution()
    tolerances, func = case.tolerances[::2][:3] if options.quick else case.tolerances, None
    for tolerance in progress(tolerances, desc=name):
        problem = options.build(name, tolerance=tolerance)
        func = func or problem.func  # one for all: code that was generated for it serves at every tolerance
        problem = replace(problem, func=func)
        calls = {}
        for solver in options.chosen(case.solvers):
            prepared, row = checked(solver, problem, reference)
            if prepared:
                calls[solver] = prepared
            yield {"kind": "solver", "tolerance": tolerance, **row}
        for seconds in _rounds(calls, options, options.seconds / len(tolerances)) if calls else ():
            yield {"kind": "round", "tolerance": tolerance, "times": seconds}


def growth_rows(case, options):
    """Peak memory over numbers of steps."""
    for name in progress(case.problems[: 2 if options.quick else None], desc="memory"):
        problem = options.build(name)
        size = {
            "state_bytes": problem.y0.numel() * problem.y0.element_size(),
            "n_accepted": problem.n_accepted(),
        }
        for solver in options.chosen(case.solvers):
            yield {"kind": "memory", "solver": solver, **size, **options.peak_memory(name, solver)}


def breakdown_rows(case, options):
    """Where the time goes: a row per problem and solver."""
    for name in progress(case.problems, desc="breakdown"):
        problem = options.build(name)
        limit = Limit(problem, problem.accepted_evaluations())
        rounds = list(_rounds({EVALUATIONS: limit.evaluations, VJPS: limit.vjps}, options, options.seconds / 4))
        for solver in options.chosen(case.solvers):
            yield {
                "kind": "breakdown",
                "problem": problem.title,
                "solver": solver,
                "n_evals_accepted": limit.n_evals,
                "limit_seconds": median(sum(seconds.values()) for seconds in rounds),
                "parts": breakdown.seconds_by_part(problem, solver, options.rounds[1]),
            }


def first_call_rows(case, options):
    """A row per problem, solver and repetition: seconds of the first call, without generated code and later."""
    for name in progress(case.problems, desc="first calls"):
        for solver in options.chosen(case.solvers):
            for _ in range(1 if options.quick else 3):
                found = fresh_process.first_calls(name, solver, **options.of_process)
                yield {"kind": "first_call", "problem": options.build(name).title, "solver": solver, **found}


def client_rows(case, options):
    """Client programs: for each a row per solver, then a row per round with the seconds of all."""
    for name in progress(case.problems, desc="programs"):
        client = clients.build(name, seed=options.seed, quick=options.quick, device=options.device)
        theirs = DROP_INS["torchdiffeq odeint"]
        reference = None if theirs is None else client(theirs)[1]
        calls = {}
        for solver in options.chosen(case.solvers):
            call, row = checked_client(solver, client, reference)
            if call:
                calls[solver] = call
            yield {"kind": "solver", "program": name, **row}
        for seconds in _rounds(calls, options, options.seconds / len(case.problems)) if calls else ():
            yield {"kind": "round", "program": name, "times": seconds}


def _rounds(calls, options, seconds):
    limits = {"seconds": seconds, "slow": max(seconds, 1.0)}  # one call of what is slower uses all the time up
    return alternating(calls, rounds=options.rounds, clock=options.clock, device=options.device, **limits)


CASES = {
    "three_body_end": Case("Three bodies, end point", time_rows, ("three_body_end",), TIMED),
    "three_body_outputs": Case("Three bodies, 49 outputs", time_rows, ("three_body_outputs",), TIMED),
    "three_body_close": Case("Three bodies, close encounters", time_rows, ("three_body_close",), TIMED),
    "mlp_dopri5": Case("MLP neural ODE, Dopri5 at 1e-5", time_rows, ("mlp_dopri5",), TIMED, memory=True),
    "mlp_heun": Case("MLP neural ODE, Heun-Euler at 1e-2", time_rows, ("mlp_heun",), TIMED),
    "conv": Case("Vector field of NODE-18, Heun-Euler at 1e-2", time_rows, ("conv",), TIMED, memory=True),
    "fixed_steps": Case("MLP neural ODE, 100 fixed steps of midpoint", time_rows, ("fixed_steps",), TIMED),
    "many_steps": Case("Many fixed steps in little memory", time_rows, ("many_steps",), BUDGET, memory=True),
    "memory": Case(
        "Memory against number of steps", growth_rows, tuple(f"memory_{n}" for n in problems.STEPS_PER_HORIZON), GROWTH
    ),
    "first_calls": Case("First calls", first_call_rows, ("three_body_end",), GENERATED),
    "breakdown": Case(
        "Where the time goes",
        breakdown_rows,
        ("three_body_end", "three_body_outputs", "mlp_dopri5", "mlp_heun", "conv"),
        ("aca", "aca, memory=unlimited", "aca, compile"),
    ),
    "clients": Case("Programs of torchdiffeq's clients", client_rows, tuple(clients.PROGRAMS), tuple(DROP_INS)),
    "short_solves": Case("Short solves, one behind the other", client_rows, tuple(clients.SHORT), tuple(DROP_INS)),
    "rows_lotka_volterra": Case("Rows at different speeds, 64", time_rows, ("rows_lotka_volterra",), ROWS),
    "rows_lotka_volterra_256": Case("Rows at different speeds, 256", time_rows, ("rows_lotka_volterra_256",), ROWS),
    "rows_mlp": Case("MLP neural ODE, rows by themselves", time_rows, ("rows_mlp",), ROWS),
    "rows_stiff": Case("Rows of different stiffness", time_rows, ("rows_stiff",), ROWS),
    "rows_recurrent": Case("ODE-RNN, rows at times of their own", time_rows, ("rows_recurrent",), ROWS),
    "diagram_van_der_pol": Case("Work and precision, van der Pol", diagram_rows, ("van_der_pol",), DIAGRAM),
    "diagram_three_body": Case("Work and precision, three bodies", diagram_rows, ("three_body",), DIAGRAM),
    **{
        name: Case(f"Work and precision, {title}", diagram_rows, (name,), STIFF, tolerances=TOLERANCES[:-1])
        for name, title in {
            "stiff_robertson": "Robertson",
            "stiff_hires": "HIRES",
            "stiff_pollu": "POLLU",
            "stiff_van_der_pol": "van der Pol at mu = 1000",
        }.items()
    },
    "stiff_robertson_rows": Case(
        "Work and precision, 256 rows of Robertson's equations", diagram_rows, ("stiff_robertson_rows",), STIFF_ROWS,
        tolerances=TOLERANCES[:-1],
    ),
    "stiff_reaction_diffusion": Case(  # an explicit method ends in less than a minute
        "Work and precision, diffusion and a learned reaction on 64 points", diagram_rows,
        ("stiff_reaction_diffusion",), (*STIFF, "Dopri5"), tolerances=(1e-2, *TOLERANCES[:-1]),
    ),
}
