"""Scaling rules: from a network's description and a target to a new description and input size."""

from .descriptions import Description, StageTable, read_base
from .rules import CompoundRule, Factors, FastRule, Rounding, Rule
from .search import Cost, Member, cost, scale_to_macs, scale_to_ms
from .tiny import PUBLISHED_SAMPLES, Sample, TinyRule, pareto_front

__all__ = [
    'PUBLISHED_SAMPLES',
    'CompoundRule',
    'Cost',
    'Description',
    'Factors',
    'FastRule',
    'Member',
    'Rounding',
    'Rule',
    'Sample',
    'StageTable',
    'TinyRule',
    'cost',
    'pareto_front',
    'read_base',
    'scale_to_macs',
    'scale_to_ms',
]
