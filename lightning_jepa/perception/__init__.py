"""Perception, s = Enc(x): encoders from pictures to states, and the expander (paper sections 3 and 4.4)."""
