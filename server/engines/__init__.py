"""How messages reach sites."""
