"""The networks as they are trained: the backbone with its control network, and the VAE on whole clips."""
