"""Resolution-wise dynamic image networks."""
