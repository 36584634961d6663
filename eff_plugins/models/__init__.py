"""Networks: image and video backbones, classifiers and decoders."""
