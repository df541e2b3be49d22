"""Latent ODE on bi-directional spirals, against recurrent networks."""
