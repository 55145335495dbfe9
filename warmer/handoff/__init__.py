"""Hand off: what the server container needs, and how it gets there."""
