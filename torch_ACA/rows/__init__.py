"""``per_sample=True``: a batch of independent systems, each with its own time, step size, error norm and acceptance."""
