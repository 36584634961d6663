"""Decoders for dense prediction."""
