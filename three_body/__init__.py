"""The three-body problem: eight models of a trajectory, from black boxes to Newton's law with unknown masses."""
