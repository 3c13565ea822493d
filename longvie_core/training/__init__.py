"""Training of the control network: initialisation, degradation, losses and the trainer on accelerate."""
