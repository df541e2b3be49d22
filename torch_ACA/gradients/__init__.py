"""Gradient methods: what is remembered of a solve, and how its gradient is computed."""
