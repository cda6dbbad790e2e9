"""Vectorised simulators that ship with the template."""
