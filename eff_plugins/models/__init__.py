"""Networks: image and video backbones and classifiers."""
