"""Why reverse-time gradients go wrong: the van der Pol equation, a linear toy, a convolution, and what it costs."""
