"""Packed records: the files of many run folders in one file of JSON lines, compressed by xz.

A line is a run: ``{"run": its folder as seen from the pack's, "files": {name: content}}``. JSON files are kept as what
they hold, JSON-lines and CSV files by columns, which compress better, texts as they are, other files as ``{"base64":
...}``. Whatever reads a record asks `read` and `folders`, so that a run folder and a packed run look alike. Where both
are there, the folder counts.
"""

import base64
import functools
import json
import lzma
import os
from itertools import groupby
from pathlib import Path, PurePath

from harness.cli import UsageError
from harness.files import atomic_write

PACK = "records.jsonl.xz"
LEFT_OUT = ("*.pt", "events.out.tfevents.*", "*.png", "*.gif", "*.tmp")  # files of a run folder that can be made anew


def read(folder, name):
    """The bytes of a file in a run's record; None if it has no such file."""
    folder = Path(folder)
    if (folder / name).is_file():
        return (folder / name).read_bytes()
    _, files = _packed(folder)
    return _encoded(name, files[name]) if name in files else None


def folders(root, name):
    """The run folders below ``root`` whose record, unpacked or packed, has a file called ``name``, in order."""
    root = Path(root)
    found = {path.parent for path in root.glob(f"**/{name}")}
    for pack in (*root.glob(f"**/{PACK}"), *_above(root)):
        for run, files in _runs(pack).items():
            folder = pack.parent / run
            if name in files and folder.is_relative_to(root) and not _unpacked(folder):
                found.add(folder)
    return sorted(found)


def source(folder):
    """Where a run's record lies: the pack that holds it as it is now, or else its folder.

    So pages link to the same files before and after the folders of packed runs are removed.
    """
    folder = Path(folder)
    pack, files = _held(folder)
    as_it_is = pack and not (_unpacked(folder) and json.dumps(files) != json.dumps(_files(folder)))
    return pack if as_it_is else folder


def pack(root):
    """Pack the runs below ``root`` that have ended: a pack for each folder in it, which is a profile, and one for the
    runs right below it. Runs packed earlier stay, unless they are there anew. Returns how many were packed.
    """
    root, found = Path(root), {}
    for path in sorted(root.glob("**/summary.json")):
        folder = path.parent
        if _unpacked(folder):
            first, *rest = folder.relative_to(root).parts
            where = root / first if rest else root
            found.setdefault(where, {})[folder.relative_to(where).as_posix()] = _files(folder)
    for where, new in found.items():
        runs = {**_runs(where / PACK), **new}
        lines = (json.dumps({"run": run, "files": runs[run]}) + "\n" for run in sorted(runs))
        with atomic_write(where / PACK) as file:
            file.write(lzma.compress("".join(lines).encode(), preset=9))
    return sum(map(len, found.values()))


def _unpacked(folder):
    return (folder / "run.json").is_file()


def _packed(folder):
    """The pack that holds the run of a folder, and the run's files by name; (None, {}) if the folder has its record, or
    no pack has it."""
    return (None, {}) if _unpacked(folder) else _held(folder)


def _held(folder):
    """As `_packed`, whether or not the folder has its record."""
    for pack in _above(folder):
        run = Path(os.path.abspath(folder)).relative_to(os.path.abspath(pack.parent)).as_posix()
        if run in (runs := _runs(pack)):
            return pack, runs[run]
    return None, {}


def _files(folder):
    """What a pack is to hold of a run folder."""
    return {file.name: _decoded(file) for file in sorted(folder.iterdir()) if _belongs(file)}


def _above(folder):
    """The packs in the folders above one, from the nearest on."""
    return [parent / PACK for parent in folder.parents if (parent / PACK).is_file()]


def _runs(path):
    """{run: its files by name} of a pack; nothing where there is none."""
    return _parsed(path, path.stat().st_mtime_ns) if path.is_file() else {}


@functools.lru_cache
def _parsed(path, changed):
    """As `_runs`, of the pack as it was when it was ``changed`` last."""
    try:
        lines = map(json.loads, lzma.decompress(path.read_bytes()).splitlines())
        return {line["run"]: line["files"] for line in lines}
    except (lzma.LZMAError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged, or holds no packed records") from error


def _belongs(file):
    return file.is_file() and not any(file.match(pattern) for pattern in LEFT_OUT)


def _decoded(file):
    content = file.read_bytes()
    try:
        if file.suffix == ".json":
            return json.loads(content)
        if file.suffix == ".jsonl":
            return _columns([json.loads(line) for line in content.splitlines()])
    except ValueError as error:
        raise UsageError(f"{file} is damaged, and cannot be packed: {error}") from error
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(content).decode()}
    return _csv_columns(text) if file.suffix == ".csv" else text


def _encoded(name, content):
    suffix = PurePath(name).suffix
    if suffix == ".json":
        return json.dumps(content).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in _rows(content)).encode()
    if suffix == ".csv" and isinstance(content, list):
        return _csv(content).encode()
    return content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])


def _columns(rows):
    """Rows of a JSON-lines file as blocks, one for each stretch of rows with the same names: their values by name."""
    blocks = ([*block] for _, block in groupby(rows, list))
    return [{name: [row[name] for row in block] for name in block[0]} for block in blocks]


def _rows(blocks):
    return [dict(zip(block, values)) for block in blocks for values in zip(*block.values())]


def _csv_columns(text):
    """The columns of a CSV file, each with commas; the text as it is where they would not give it back."""
    columns = [",".join(column) for column in zip(*(line.split(",") for line in text.splitlines()))]
    return columns if _csv(columns) == text else text


def _csv(columns):
    return "".join(",".join(row) + "\n" for row in zip(*(column.split(",") for column in columns)))
