"""Run folders and packed records read alike."""

import json
import lzma
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from harness import packed
from harness.cli import UsageError
from harness.environment import ROOT
from harness.record import Run, read_metrics, read_run
from harness.testing import add_test, read_tests


def make_run(folder, loss=0.1):
    """A record with all kinds of files."""
    run = Run.start(folder, {"seed": 0})
    run.log(1, {"Train/Loss": loss}, missing=None)
    add_test(folder, {"checkpoint": "best.pt", "mse": loss})
    run.finish({"status": "finished"})
    (folder / "path.csv").write_text("t,µ\n0,1\n")
    np.savez_compressed(folder / "numbers.npz", values=np.arange(3))
    for name in ("checkpoint.pt", "curves.png"):
        (folder / name).touch()


def record_of(folder):
    run = read_run(folder)
    files = [packed.read(folder, name) for name in ("path.csv", "numbers.npz", "checkpoint.pt", "curves.png", "no.csv")]
    return run, read_metrics(folder), read_tests(folder), files


def test_packed_runs_read_like_their_folders(tmp_path):
    places = [tmp_path / name for name in ("single", "paper/a/seed0", "paper/a/seed1")]
    for place in places:
        make_run(place)
    before, found = [record_of(place) for place in places], packed.folders(tmp_path, "tests.jsonl")
    assert packed.pack(tmp_path) == 3
    for place in places:
        shutil.rmtree(place)
    assert sorted(tmp_path.glob("**/*.xz")) == [tmp_path / "paper" / packed.PACK, tmp_path / packed.PACK]
    for place, (*record, files) in zip(places, before):
        *again, packed_files = record_of(place)
        assert again == record
        assert packed_files == files[:2] + [None] * 3  # checkpoints and figures are not packed
        assert packed.source(place).name == packed.PACK
    assert packed.folders(tmp_path, "tests.jsonl") == found == sorted(places)
    assert packed.folders(tmp_path / "paper" / "a", "summary.json") == places[1:]
    assert packed.folders(tmp_path, "no.csv") == []
    with pytest.raises(UsageError, match="no record of a run"):
        read_run(tmp_path / "paper/a/seed2")


def test_a_run_folder_counts_more_than_its_packed_record(tmp_path):
    make_run(tmp_path / "paper/a", 0.1)
    make_run(tmp_path / "paper/b", 0.2)
    packed.pack(tmp_path)
    content = (tmp_path / "paper" / packed.PACK).read_bytes()
    shutil.rmtree(tmp_path / "paper/a")
    shutil.rmtree(tmp_path / "paper/b")
    assert packed.pack(tmp_path) == 0 and (tmp_path / "paper" / packed.PACK).read_bytes() == content
    make_run(tmp_path / "paper/a", 0.5)
    assert read_metrics(tmp_path / "paper/a")[0]["Train/Loss"] == 0.5
    assert packed.source(tmp_path / "paper/a") == tmp_path / "paper/a"
    assert packed.folders(tmp_path, "run.json") == [tmp_path / "paper/a", tmp_path / "paper/b"]
    packed.pack(tmp_path)
    assert packed.source(tmp_path / "paper/a") == tmp_path / "paper" / packed.PACK  # what pages link to stays
    shutil.rmtree(tmp_path / "paper/a")
    assert [read_metrics(tmp_path / "paper" / name)[0]["Train/Loss"] for name in "ab"] == [0.5, 0.2]


def test_a_run_under_way_is_not_packed(tmp_path):
    Run.start(tmp_path / "a", {"seed": 0}).close()
    assert packed.pack(tmp_path) == 0 and not (tmp_path / packed.PACK).exists()
    assert packed.folders(tmp_path, "run.json") == [tmp_path / "a"]


def test_paths_may_be_relative(tmp_path, monkeypatch):
    make_run(tmp_path / "results/paper/a")
    packed.pack(tmp_path / "results")
    shutil.rmtree(tmp_path / "results/paper/a")
    monkeypatch.chdir(tmp_path)
    assert packed.folders("results", "run.json") == [Path("results/paper/a")]
    monkeypatch.chdir(tmp_path / "results" / "paper")
    assert read_run("a")["seed"] == 0 and packed.folders(".", "run.json") == [Path("a")]


def test_what_git_keeps_of_the_results_is_small():
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "results"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    there = [path for path in paths if path.exists()]
    assert len(there) <= 200 and sum(path.stat().st_size for path in there) <= 11_000_000
    assert {path.suffix for path in there} <= {"", ".md", ".csv", ".json", ".xz", ".png", ".gif"}


def test_lines_of_a_pack_are_json(tmp_path):
    make_run(tmp_path / "paper/a")
    packed.pack(tmp_path)
    (line,) = packed.lzma.decompress((tmp_path / "paper" / packed.PACK).read_bytes()).splitlines()
    line = json.loads(line)
    assert line["run"] == "a" and line["files"]["metrics.jsonl"][0]["Train/Loss"] == [0.1]


@pytest.mark.parametrize("name, text, by_columns", [
    ("metrics.jsonl", '{"a": 1, "b": NaN}\n{"b": 2, "a": [3]}\n{"a": 1.0}\n{"a": null}\n', True),
    ("metrics.jsonl", "", True),
    ("path.csv", "t,µ\n0,1e-3\n1,\n", True),
    ("path.csv", "t,µ\n0\n1,2\n", False),  # a row is short
    ("path.csv", "t,µ\n0,1", False),  # no line feed at the end
    ("path.csv", "t,µ\r\n0,1\r\n", False),
    ("path.csv", "", True),
])  # fmt: skip
def test_rows_kept_by_columns_come_back_byte_for_byte(tmp_path, name, text, by_columns):
    make_run(tmp_path / "paper/a")
    (tmp_path / "paper/a" / name).write_bytes(text.encode())
    packed.pack(tmp_path)
    shutil.rmtree(tmp_path / "paper/a")
    assert packed.read(tmp_path / "paper/a", name) == text.encode()
    (line,) = packed.lzma.decompress((tmp_path / "paper" / packed.PACK).read_bytes()).splitlines()
    assert isinstance(json.loads(line)["files"][name], list) == by_columns


def test_what_is_damaged_is_named(tmp_path):
    make_run(tmp_path / "paper/a")
    (tmp_path / "paper/a/metrics.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(UsageError, match="a/metrics.jsonl is damaged, and cannot be packed"):
        packed.pack(tmp_path)
    for content in (b"", b"no pack", lzma.compress(b"{}\n"), lzma.compress(b'{"run": "a", "files": {}}\n')[:-9]):
        (tmp_path / packed.PACK).write_bytes(content)
        with pytest.raises(UsageError, match=f"{packed.PACK} is damaged, or holds no packed records$"):
            packed.folders(tmp_path, "run.json")
