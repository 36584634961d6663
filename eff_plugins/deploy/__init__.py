"""The form in which a network is deployed: BatchNorm folded, channels-last, compiled, exported to ONNX."""

from .export import export_onnx, onnx_difference
from .fuse import fuse_conv_bn
from .prepack import prepack
from .prepare import Preparation, prepare

__all__ = ['Preparation', 'export_onnx', 'fuse_conv_bn', 'onnx_difference', 'prepack', 'prepare']
