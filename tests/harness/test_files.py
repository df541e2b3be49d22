import os

import pytest

from harness.cli import UsageError
from harness.files import check_file, check_folder


def test_what_can_be_written_is_not_made_by_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path, tmp_path / "a" / "b", "c/d", "e"):
        check_folder(path)
    check_file(tmp_path / "a" / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("file", "file/run", "dangling", "dangling/run"):
        with pytest.raises(UsageError, match=f"^nothing can be written to .*{path}: .* is not a folder$"):
            check_folder(tmp_path / path)
    with pytest.raises(UsageError, match="is a folder; a file is needed"):
        check_file(tmp_path)
    # tests may run as root, who may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not (path == tmp_path and mode & os.W_OK))
    for path in (tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(UsageError, match=f"^nothing can be written to {path}: {tmp_path} is read-only$"):
            check_folder(path)
    with pytest.raises(UsageError, match="is read-only"):
        check_file(tmp_path / "figure.png")
