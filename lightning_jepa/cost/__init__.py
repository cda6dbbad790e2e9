"""The cost (paper section 3.2): energies of states that the actor minimises."""
