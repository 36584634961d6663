"""Heads and decoders for the frameworks."""
