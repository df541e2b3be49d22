"""The reports, rendered anew from the records that the repository holds: not a byte may differ."""

import shutil

import pytest

from cifar_classification import report as cifar
from harness.environment import ROOT
from latent_ode_mujoco import report as latent_ode
from three_body import report as three_body
from van_der_pol import tables as van_der_pol

RESULTS = ROOT / "results"
REPORTS = {
    "cifar_classification": lambda folder: cifar.main(["--results", str(folder)]),
    "latent_ode_mujoco": lambda folder: latent_ode.main(["--results", str(folder)]),
    "three_body": lambda folder: three_body.main(["--results", str(folder)]),
    "van_der_pol": van_der_pol.write,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTS)
def test_a_report_from_the_records_alone_is_the_one_that_is_kept(name, tmp_path):
    packs = [*(RESULTS / name).glob("**/records.jsonl.xz")]
    for pack in packs:
        there = tmp_path / name / pack.relative_to(RESULTS / name)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pack, there)
    REPORTS[name](tmp_path / name)
    written = [path.relative_to(tmp_path) for suffix in ("md", "csv") for path in tmp_path.glob(f"{name}/*.{suffix}")]
    assert packs and written
    for path in written:
        assert (tmp_path / path).read_bytes() == (RESULTS / path).read_bytes(), f"render {path} anew"
