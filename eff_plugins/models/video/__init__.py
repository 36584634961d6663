"""Video backbones and wrappers."""
