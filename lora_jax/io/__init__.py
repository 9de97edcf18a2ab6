"""Files: weights, adapters, and where they come from."""
