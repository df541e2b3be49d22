"""Folders of runs that a report is given."""

import pytest

from harness.cli import UsageError
from harness.record import Run
from harness.tables import results_folder
from tests.harness.toy import Toy


def given(folder, *flags):
    return results_folder(["--results", str(folder), *flags], "about", Toy(), packs=True)


def test_a_folder_without_runs_is_one_line_and_is_left_alone(tmp_path):
    Run.start(tmp_path / "others/run", {}, kind="three_body").close()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.glob("**/*"))
    for name, said in (
        ("mistyped", " is not there; a folder is needed"),
        ("file", " is a file; a folder is needed"),
        ("empty", " holds no record of toy (run.json or records.jsonl.xz)"),
        ("others", " holds no record of toy (run.json or records.jsonl.xz)"),
    ):
        with pytest.raises(UsageError) as caught:
            given(tmp_path / name, "--record")
        assert str(caught.value) == f"--results {tmp_path / name}{said}"
    assert sorted(tmp_path.glob("**/*")) == before


@pytest.mark.parametrize("place", [".", "one", "paper/seed0", "of/any/depth"])
@pytest.mark.parametrize("kind", ["toy", "toy/measurement", None])
def test_runs_are_found_at_any_depth(tmp_path, monkeypatch, place, kind):
    monkeypatch.setattr("harness.environment.command_line", lambda: "")  # which tells where a record says no kind
    Run.start(tmp_path / "others/run", {}, kind="three_body").close()
    Run.start(tmp_path / place, {}, kind=kind).close()
    assert given(tmp_path) == tmp_path


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path, monkeypatch):
    Run.start(tmp_path, {}, kind="toy").close()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is read-only"):
        given(tmp_path)
