"""The actor (paper section 3, "Actor"): Mode-2 infers actions by planning; see `planners`."""
