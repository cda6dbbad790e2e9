"""The world model: a joint-embedding predictive architecture, its predictors and its criteria (paper section 4)."""
