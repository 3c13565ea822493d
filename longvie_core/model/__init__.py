"""The papers' formulas: network, conditioning, noise, schedule."""
