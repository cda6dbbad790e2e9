"""Mode-2: optimisers of the energy over action sequences, all with the call of `protocols.Planner`."""
