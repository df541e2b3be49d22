"""What every experiment needs and no solver does: run folders, seeds, checkpoints, metrics, plots, command lines."""
