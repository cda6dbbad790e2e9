"""The latent variable z: what of the future is not in the present, and the energies of it (paper section 4.2)."""
