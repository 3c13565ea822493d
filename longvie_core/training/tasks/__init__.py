"""What is trained: the control network with its backbone, and the small VAE."""
