"""Spatial-wise dynamic image networks."""
