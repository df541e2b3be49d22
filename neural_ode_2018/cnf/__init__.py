"""Continuous normalising flow against planar normalising flow, in the plane."""
