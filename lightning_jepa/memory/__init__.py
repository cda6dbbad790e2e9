"""Short-term memory (paper section 3, "Short-Term Memory"; 4.9)."""
