"""Interfaces that users of other packages know, on top of `torch_ACA.solve`."""
