"""README and docs: what is printed runs, what is generated is up to date, what is linked exists."""

import functools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md", "results/README.md")
]
PAGES += sorted((ROOT / "docs").glob("*.md"))
OTHER_PACKAGES = ("torchdiffeq", "torchode", "diffrax", "jax", "TorchDiffEqPack")
sys.path.insert(0, str(ROOT / "scripts"))
import code_map  # noqa: E402  scripts, not modules of a package
import render_docs  # noqa: E402
import results_page  # noqa: E402

import torch_ACA  # noqa: E402
from harness import packed  # noqa: E402

NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def blocks(page):
    """The Python blocks of a page, each on the lines where it stands."""
    text = page.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: block.start(1)].count("\n") + block[1] for block in found]


def run(page, after=lambda names: None):
    """Run the blocks of a page one after the other, and return the variables that they leave.

    :param after: called with the variables after each block that could run
    """
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for block in blocks(page):
        try:
            exec(compile(block, str(page), "exec"), namespace)
        except ModuleNotFoundError as error:  # a block of another package, to compare with
            assert error.name in OTHER_PACKAGES, error
        else:
            after(namespace)
    return namespace


def test_the_methods_page_shows_the_tested_code():
    code = (ROOT / "tests/torch_ACA/test_add_a_method.py").read_text()
    page = (ROOT / "docs/methods.md").read_text()
    for name in ("tableau", "stepper"):
        shown = re.search(f"# begin {name}\n(.*?)# end {name}", code, re.DOTALL)[1].strip()
        assert f"{shown}\n```" in page


@pytest.mark.parametrize(
    "page", [page for page in PAGES[1:] if blocks(page) and page.name != "migration.md"], ids=lambda page: page.name
)
def test_python_blocks_run(page):
    run(page)


def test_block_of_the_readme_is_short_and_trains():
    assert all(len(block.strip().splitlines()) <= 15 for block in blocks(ROOT / "README.md"))
    names = run(ROOT / "README.md")
    assert names["loss"] < names["spiral"].square().mean() / 20


def test_calls_side_by_side_give_the_same_solution():
    solutions = []

    def keep(names):
        if "ys" in names:
            solutions.append(names.pop("ys"))

    t = run(ROOT / "docs" / "migration.md", keep)["t"]
    wanted = torch.exp(-0.5 * t).repeat(8).sort().values  # of four rows with two entries
    assert len(solutions) >= 6
    for ys in solutions:
        found = ys.detach() if isinstance(ys, torch.Tensor) else torch.tensor(np.array(ys))
        found = found.to(wanted)  # JAX has double precision once another test has asked for it
        torch.testing.assert_close(found.flatten().sort().values, wanted, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}"


def anchors(page):
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES[1:], ids=NAMES[1:])
def test_generated_parts_are_up_to_date(page):
    assert render_docs.rendered(page.read_text()) == page.read_text(), "run scripts/render_docs.py"


def test_all_that_is_public_is_on_the_reference_page():
    page = (ROOT / "docs/api.md").read_text()
    for name in torch_ACA.__all__:
        assert re.search(rf"^::: torch_ACA\.{name}$|`(torch_ACA\.)?{name}`", page, re.MULTILINE), name


def test_a_module_that_the_map_of_the_code_lacks_is_an_error(tmp_path):
    package = tmp_path / "package"
    (package / "steps").mkdir(parents=True)
    for name, line in {"__init__": "All.", "api": "Solves.", "steps/__init__": "Steps.", "steps/one": "One."}.items():
        (package / f"{name}.py").write_text(f'"""{line}"""\n')
    page = code_map.code_map(package, {"Calls": ("api",), "Steps": ("steps",)})
    assert re.findall(r"\[`(.*?)`\].* \| (.*) \|", page) == [
        ("api.py", "Solves."), ("steps/", "Steps."), ("steps/one.py", "One."),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="name once: steps"):
        code_map.code_map(package, {"Calls": ("api",)})
    with pytest.raises(ValueError, match="name once: api"):
        code_map.code_map(package, {"Calls": ("api",), "Steps": ("steps", "api")})
    (package / "api.py").write_text('"""Solves what it is\ngiven."""\n')
    with pytest.raises(ValueError, match="begin with one line"):
        code_map.code_map(package, {"Calls": ("api",), "Steps": ("steps",)})


def test_the_readme_and_the_page_of_results_are_up_to_date(monkeypatch):
    """Both are made of the same records, which take long to read."""
    monkeypatch.setattr(packed, "read", functools.cache(packed.read))
    monkeypatch.setattr(results_page, "parts", functools.cache(results_page.parts))
    readme = PAGES[0].read_text()
    assert render_docs.rendered(readme) == readme, "run scripts/render_docs.py"
    assert results_page.page() == render_docs.PAGE.read_text(), "run scripts/render_docs.py"


def scaled(content):
    """JSON with all fractional numbers 3 times as large, but for those that name a case."""
    if isinstance(content, dict):
        named = ("rtol", "atol", "tolerance", "sample", "horizon", "start", "shrink", "solver", "settings", "t", "lr")
        return {name: value if name in named else scaled(value) for name, value in content.items()}
    if isinstance(content, list):
        return [scaled(value) for value in content]
    return 3 * content if isinstance(content, float) else content


def cells(text, *columns):
    """Those columns of the tables of a page, by the texts of their header."""
    found, chosen = [], ()
    lines = text.splitlines()
    for line, after in zip(lines, [*lines[1:], ""]):
        row = line.strip("| ").split(" | ")
        if after.startswith("| ---"):
            chosen = [index for index, name in enumerate(row) if name in columns]
        elif line.startswith("| ") and not line.startswith("| ---"):
            found += [row[index] for index in chosen if index < len(row)]
    return found


@pytest.mark.slow
def test_every_number_of_the_pages_comes_from_a_record(monkeypatch):
    read = packed.read

    def altered(folder, name):
        content = read(folder, name)
        if content is None or not name.endswith((".json", ".jsonl")):
            return content
        lines = [content] if name.endswith(".json") else content.splitlines()
        return b"".join(json.dumps(scaled(json.loads(line))).encode() + b"\n" for line in lines)

    pages = {
        render_docs.results: [f"{name}, here" for name in render_docs.COMPARED],
        results_page.page: ["here", "difference (95 %)"],
    }
    papers = ["in the paper"]
    before = {make: make() for make in pages}
    monkeypatch.setattr(packed, "read", altered)
    for make, columns in pages.items():
        text = make()
        pairs = list(zip(cells(before[make], *columns), cells(text, *columns), strict=True))
        kept = [a for a, b in pairs if a == b and re.search(r"[1-9]", a) and "ICC" not in a]  # zero stays
        # growth factors and counts are ratios, which stay, and intraclass correlations come from predictions.npz
        kept = [a for a in kept if not re.search(r"-fold|^factor|^\d+ of \d+ |^[+-]?0\.\d{3}\b", a)]
        assert len(pairs) > 10 and kept == []
        assert cells(text, *papers) == cells(before[make], *papers)


def test_hand_written_parts_of_the_readme_hold_no_measured_number():
    text = re.sub(r"<!-- (\w+): written by.*?<!-- end of \1 -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)|arXiv [\d.]+|(Python|PyTorch) [\d.]+", "", text, flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+|\d+ ?%", text) == []


def test_figure_is_up_to_date(tmp_path):
    render_docs.save_figure(render_docs.figure(), tmp_path / "figure.png")
    drawn, kept = (image.imread(path) for path in (tmp_path / "figure.png", render_docs.FIGURE))
    # other versions of matplotlib place text a little differently, so only the size and most of the ink have to agree
    assert abs(drawn.shape[1] - kept.shape[1]) < 20
    assert abs(drawn.mean() - kept.mean()) < 0.01
