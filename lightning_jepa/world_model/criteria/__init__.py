"""Training criteria that keep the energy from collapsing (paper section 4.5), one small module each."""
