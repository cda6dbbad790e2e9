"""From raw bytes to a batch."""
