"""The command line, the records, and the tables and figures drawn from them."""

import json

import pytest
import torch

from benchmarks import breakdown, cases, plot, records, tables
from benchmarks.problems import build
from benchmarks.run import main, options_of, parser
from harness.cli import UsageError

RUN = ("mlp_heun", "breakdown", "diagram_three_body", "clients", "short_solves")


pytestmark = pytest.mark.slow  # a run of them all


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the run is to measure with the one thread it says
    few = ["--quick", "--rounds", "2", "2", "--solvers", "aca", "adjoint", "torchdiffeq odeint"]
    main([*few, "--out", str(folder), "--cases", *RUN])
    yield folder
    torch.set_num_threads(threads)


def test_a_run_is_recorded_and_rendered(folder):
    run = json.loads((folder / "mlp_heun" / "run.json").read_text())
    assert run["arguments"]["libraries"]["torch-ACA"] and run["environment"]["packages"]["torch"]
    assert run["environment"]["threads"] == run["arguments"]["threads"] == 1
    assert {path.name for path in folder.glob("*/*.png")} == {f"{case}.png" for case in RUN}
    text = (folder / "tables.md").read_text()
    assert "Quick, scaled down: MLP neural ODE, Heun-Euler" in text and "Work and precision, three bodies" in text
    assert "Where the time goes" in text


def test_a_folder_without_records_of_a_benchmark_is_left_alone(tmp_path):
    for name, said in (("nowhere", "is not a folder of records"), (".", "holds no complete record of a case, such as")):
        with pytest.raises(UsageError, match=said):
            plot.main([str(tmp_path / name)])
    assert list(tmp_path.iterdir()) == []


def test_ratios_are_medians_of_ratios_within_rounds():
    rounds = [{cases.EVALUATIONS: 1.0, cases.VJPS: 1.0, "a": 3.0}, {cases.EVALUATIONS: 2.0, cases.VJPS: 3.0, "a": 10.0}]
    rounds.append({cases.EVALUATIONS: 1.0, cases.VJPS: 0.0, "a": 9.0})
    record = records.Record("mlp_heun", {}, {}, rounds)
    assert record.to_limit("a") == 2.0  # of 1.5, 2, 9; the ratio of medians would be 9 / 2
    assert record.beyond_limit("a", n_evals=2) == 2.5e6  # of 0.5, 2.5, 4 seconds
    assert record.median("a") == 9.0 and record.median(cases.EVALUATIONS, cases.VJPS) == 2.0
    assert record.to_limit("not timed") is None and record.to_solver("a", "not timed") is None


def test_times_at_equal_error_are_interpolated(monkeypatch):
    def record(mine, theirs):  # (gradient error, seconds) of each
        rows = {name: {"gradient_error": error} for name, (error, _) in (("a", mine), ("b", theirs))}
        return records.Record("stiff_hires", {}, rows, [{"a": mine[1], "b": theirs[1]}])

    diagram = {1e-3: record((1e-2, 1.0), (1e-3, 1.0)), 1e-4: record((1e-4, 4.0), (1e-7, 100.0))}
    monkeypatch.setattr(records, "read_diagram", lambda folder, case: diagram)
    assert tables._at_equal_error("", "", "a", "b") == pytest.approx(2.0)  # b's other error is one that a has not


def test_first_calls_are_medians_beside_diffrax(monkeypatch):
    rows = {"aca, compile": [(30, 6), (20, 8), (28, 7)], tables.DIFFRAX: [(4, 4), (5, 5), (3, 3)]}
    found = {
        ("three bodies, end point", solver): [{"no_code": none, "later": later} for none, later in pairs]
        for solver, pairs in rows.items()
    }
    monkeypatch.setattr(records, "read_first_calls", lambda folder: found)
    assert tables._first_call("", "no_code") == 28 / 4 and tables._first_call("", "later") == 7
    found["three bodies, end point", "aca, compile"][0] = {"failure": "exit code 1"}
    assert tables._first_call("", "no_code") is None


def test_growth_per_step_is_counted_in_states():
    rows = [{"n_accepted": n, "state_bytes": 8, "peak_bytes": 100 + 12 * n} for n in (10, 40, 160)]
    assert records.slope(rows) == 1.5
    del rows[-1]["peak_bytes"]
    assert records.slope(rows) is None


def test_tables_show_what_the_records_hold(folder):
    record = records.read(folder, "mlp_heun")
    text = tables._timed(folder, "mlp_heun")
    (line,) = (line for line in text.splitlines() if line.startswith("| aca |"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[2] == f"{record.to_limit('aca'):.2f}" and cells[5] == str(record.solvers["aca"]["nfe_forward"])
    aims = tables._aims(folder)
    (aim,) = (line for line in aims.splitlines() if "aca, MLP, Heun-Euler: time / limit" in line)
    assert cells[2] in aim and ("| yes |" in aim) == (record.to_limit("aca") <= 1.25)
    assert "| aca, field of NODE-18: time / limit | 1.03 |  |  |" in aims  # not run: blank


@pytest.mark.parametrize("case", ["clients", "short_solves"])
def test_client_programs_are_rows_with_the_ratios_of_their_rounds(folder, case):
    pytest.importorskip("torchdiffeq")
    found = records.read_clients(folder, case)
    assert tuple(found) == cases.CASES[case].problems
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables._clients(folder, case).splitlines()]
    for program, record in found.items():
        assert list(record.solvers) == ["aca", "torchdiffeq odeint"] and len(record.rounds) == 2
        (cells,) = (line for line in lines if line[:2] == [program.replace("_", " "), "aca"])
        assert cells[3] == f"{record.to_solver('aca', 'torchdiffeq odeint'):.2f}"
        assert record.solvers["aca"]["gradient_difference"] < 1e-5  # float32 in the short solves
    assert f"| {tables._slowest(folder, 'short_solves'):.2f} |" in tables._aims(folder)
    assert tables._slowest(folder, "clients") is None  # the convolutional one was not run with its graphs kept


def test_the_slowest_program_counts_and_convolutions_with_their_graphs(monkeypatch):
    def record(**seconds):
        return records.Record("clients", {}, {}, [{"torchdiffeq odeint": 1.0, **seconds}])

    kept = {"aca": 9.0, "aca, memory=unlimited": 0.9}
    found = {"conditional": record(aca=1.25), "flow": record(aca=0.5), "convolutional": record(**kept)}
    monkeypatch.setattr(records, "read_clients", lambda folder, case: found)
    assert tables._slowest("", "clients") == 1.25


def test_what_is_complete_is_neither_overwritten_nor_measured_again(folder, capsys):
    before = (folder / "mlp_heun" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match="already holds mlp_heun"):
        main(["--quick", "--out", str(folder), "--cases", "mlp_heun"])
    main(["--quick", "--out", str(folder), "--cases", "mlp_heun", "--resume"])
    assert (folder / "mlp_heun" / "metrics.jsonl").read_bytes() == before


def test_bad_input_is_one_line(capsys):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(["--cases", "nonsense"])
    assert exit.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UsageError, match="must not exceed"):
        options_of(parser().parse_args(["--rounds", "5", "3"]), device=type("D", (), {"type": "cpu"}))
    with pytest.raises(UsageError, match="not a folder"):
        plot.main(["/no/such/folder"])


def test_every_solver_has_a_colour_and_every_case_a_figure():
    shown = {name for case in cases.CASES.values() for name in case.solvers}
    assert shown <= set(plot.COLOURS)
    assert {case.rows for case in cases.CASES.values()} == set(plot._FIGURES) == set(tables._TABLES)


def test_timers_take_what_those_inside_them_do_not(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0])
    monkeypatch.setattr(breakdown.time, "perf_counter", lambda: next(clock))
    timers = breakdown.Timers()
    inner = timers.around(lambda: None, lambda: breakdown.FUNC)
    timers.around(inner, lambda: "steps forward")()
    assert timers.spent[breakdown.FUNC] == 3.0 and timers.spent["steps forward"] == 7.0


def test_breakdown_adds_up_to_the_solve():
    problem = build("three_body_end", quick=True)
    parts = breakdown.seconds_by_part(problem, "aca, memory=states", rounds=3)
    assert set(parts) == set(breakdown.PARTS)
    assert {part for part, seconds in parts.items() if seconds == 0} == {breakdown.GUARDS, breakdown.GENERATED}
    kept = breakdown.seconds_by_part(problem, "aca, memory=unlimited", rounds=3)
    assert kept[breakdown.FUNC] < parts[breakdown.FUNC]  # graphs are recorded in the forward pass


@pytest.mark.slow
def test_breakdown_of_compiled_loops():
    problem = build("three_body_end", quick=True)
    parts = breakdown.seconds_by_part(problem, "aca, compile", rounds=3)
    assert parts[breakdown.GUARDS] > 0 and parts[breakdown.GENERATED] > parts[breakdown.FUNC]
