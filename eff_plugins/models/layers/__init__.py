"""Building blocks, usable on their own."""
