"""Random programs around a solve, compared with plain autograd over the same accepted steps.

From one integer, `cases` draws what is asked of the solver, `program` builds it (with the states of `states` and the
vector fields of `fields`) and runs it twice: with torch_ACA, and with `oracle`, which walks the steps that torch_ACA
accepted. `check` compares all that came out. `ways` compares rows, events and compiled code with the plain way.
`test_fuzz.py` runs a few cases in the test suite, `scripts/fuzz.sh` as many as asked for.
"""
