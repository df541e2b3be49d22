"""Latent ODEs and recurrent networks on irregularly sampled trajectories of a simulated hopper."""
