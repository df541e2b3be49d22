"""Test a fitted field (--resume); without --resume rebuild the trajectory of the paper's equation, see rebuild.py."""

import sys

from harness.cli import run_main
from harness.testing import test
from van_der_pol import rebuild
from van_der_pol.experiment import VanDerPol


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if any(word.partition("=")[0] == "--resume" for word in argv):
        return test(VanDerPol(), argv)
    return rebuild.main(argv)


if __name__ == "__main__":
    run_main(main)
