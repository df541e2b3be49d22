"""ODE-Net on MNIST, against a residual network and a network that back-propagates through a Runge-Kutta solver."""
