"""Static image backbones."""
