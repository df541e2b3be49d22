"""`compile=True`: func as a graph, and code generated for steps, and for whole loops over steps, around it."""
