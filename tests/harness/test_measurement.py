"""Measurements in parts: one that is interrupted goes on where it was, and ends with the rows of one that was not."""

import pytest

from harness import packed
from harness.cli import UsageError
from harness.measurement import measurement_parser, read, write_parts
from harness.record import Run


def test_an_interrupted_measurement_goes_on_with_the_part_that_lacks_rows(tmp_path):
    made = []

    def rows(part, die_at=None):
        for number in range(3):
            if (part, number) == die_at:
                raise KeyboardInterrupt
            made.append((part, number))
            yield {"seed": part, "number": number}

    args = measurement_parser("about", tmp_path / "run").parse_args([])
    with pytest.raises(KeyboardInterrupt):
        write_parts(args, [0, 1, 2], lambda part: rows(part, die_at=(1, 2)))
    assert packed.read(args.out, "summary.json") is None
    made.clear()
    write_parts(args, [0, 1, 2], rows, about="it")
    assert made == [(part, number) for part in (1, 2) for number in range(3)]
    found = read(args.out)
    assert [(row["seed"], row["number"]) for row in found] == [(p, n) for p in range(3) for n in range(3)]
    assert [row["step"] for row in found] == list(range(9))
    assert packed.read(args.out, "summary.json")


def test_an_unfinished_run_of_another_script_is_left_alone(tmp_path):
    run = Run.start(tmp_path, {})
    run.log(1, {"Train/Loss": 1.0})
    run.close()
    with pytest.raises(UsageError, match="holds another script's unfinished run"):
        write_parts(measurement_parser("about", tmp_path).parse_args([]), [0, 1], lambda part: [])
