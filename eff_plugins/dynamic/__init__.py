"""Dynamic inference: policies decide what to compute, executors leave the rest out; knows no concrete network."""

from .break_even import measure_break_even
from .budget import Calibration, calibrate, network_macs, set_budget
from .module import DynamicModule, set_execution, set_policy
from .recorder import Stats, emit, record
from .skip import skip_layers

__all__ = [
    'Calibration',
    'DynamicModule',
    'Stats',
    'calibrate',
    'emit',
    'measure_break_even',
    'network_macs',
    'record',
    'set_budget',
    'set_execution',
    'set_policy',
    'skip_layers',
]
