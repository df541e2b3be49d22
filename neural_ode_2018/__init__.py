"""The experiments of the Neural ODE paper (Chen et al. 2018): MNIST, continuous normalising flows, spirals."""
