"""What an mmengine checkpoint may hold besides tensors, as stand-ins for torch's ``weights_only`` unpickler.

``runner.save_checkpoint`` pickles the message hub, so a checkpoint names ``HistoryBuffer``, numpy's array functions and
``builtins.getattr`` (``HistoryBuffer`` pickles its statistics as bound functions). Allowing those objects themselves would
open a getattr primitive, and numpy's ``__setstate__`` trusts flags and sizes from the file. So every name maps to a small
stand-in that checks its arguments and keeps plain values; :func:`resolve` turns these into the real objects at the end. No
stand-in ever leaves a callable where a pickle could call it.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer, MessageHub

STATISTICS = ('min', 'max', 'current', 'mean')


class RefusedError(pickle.UnpicklingError):
    """A checkpoint uses an allowed name in a way that mmengine never does; ``offender`` says which."""

    def __init__(self, offender: str) -> None:
        super().__init__(offender)
        self.offender = offender


class _Statistic:
    """What ``getattr`` gives: the name of one of HistoryBuffer's own statistics, and nothing that can be called."""

    def __init__(self, name: str) -> None:
        self.name = name


class _History(HistoryBuffer):
    """``HistoryBuffer`` while it is read: takes two arrays and a length, then becomes the real class."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RefusedError('mmengine.logging.history_buffer.HistoryBuffer called with arguments')

    def __setstate__(self, state: Any) -> None:
        name = 'mmengine.logging.history_buffer.HistoryBuffer'
        if type(state) is not dict:
            raise RefusedError(f'{name} with a state that is no dict')
        methods = state.get('statistics_methods', {})
        if type(methods) is not dict or any(type(m) is not _Statistic or m.name != k for k, m in methods.items()):
            raise RefusedError(f'{name} with statistics that are not its own')
        # HistoryBuffer keeps this key in __dict__ once it has been pickled, beside the three that it needs
        if set(state) - {'statistics_methods'} != {'max_length', '_log_history', '_count_history'}:
            raise RefusedError(f'{name} with the attributes {sorted(map(str, state))}')
        log, count = (_value(state[key]) for key in ('_log_history', '_count_history'))
        if not isinstance(log, np.ndarray) or not isinstance(count, np.ndarray) or type(state['max_length']) is not int:
            raise RefusedError(f'{name} with histories that are no arrays')
        self.__class__ = HistoryBuffer  # type: ignore[assignment]
        self.__dict__.update(max_length=state['max_length'], _log_history=log, _count_history=count)
        self._set_default_statistics()


class _Hub(MessageHub):
    """``MessageHub`` while it is read: mmengine before 0.2 stored the hub itself."""

    def __init__(self, name: str = '', *args: object) -> None:  # its metaclass asks for an argument ``name``
        raise RefusedError('mmengine.logging.message_hub.MessageHub called with arguments')

    def __setstate__(self, state: Any) -> None:
        known = {'_log_scalars', '_runtime_info', '_resumed_keys', '_instance_name'}
        if type(state) is not dict or not set(state) <= known:
            raise RefusedError('mmengine.logging.message_hub.MessageHub with unknown attributes')
        if not all(type(state.get(key)) is OrderedDict for key in known - {'_instance_name'}):
            raise RefusedError('mmengine.logging.message_hub.MessageHub with records that are no ordered dicts')
        resolve(state, {})
        self.__class__ = MessageHub  # type: ignore[assignment]
        self.__dict__.update(state)


class _Dtype:
    """``numpy.dtype`` of numbers, booleans and strings."""

    def __init__(self, spec: Any = None, *flags: Any) -> None:
        try:
            self.value = np.dtype(spec if type(spec) is str else None)
        except TypeError as error:
            raise RefusedError(f'numpy.dtype({spec!r})') from error
        if type(spec) is not str or self.value.kind not in 'biufcSU' or self.value.subdtype is not None:
            raise RefusedError(f'numpy.dtype({spec!r})')

    def __setstate__(self, state: Any) -> None:
        plain = type(state) is tuple and len(state) in (8, 9) and state[2:5] == (None, None, None)
        if not plain or state[1] not in ('<', '>', '|', '='):
            raise RefusedError('numpy.dtype with fields')
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """``numpy.ndarray`` while it is read."""

    value: np.ndarray

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RefusedError('numpy.ndarray called with arguments')

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5 or type(state[2]) is not _Dtype:
            raise RefusedError('numpy.ndarray with an unknown state')
        _, shape, dtype, fortran, data = state
        if type(data) is not bytes or type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape):
            raise RefusedError('numpy.ndarray with an unknown state')
        try:
            self.value = np.frombuffer(data, dtype.value).reshape(shape, order='F' if fortran else 'C').copy()
        except ValueError as error:
            raise RefusedError(f'numpy.ndarray whose data do not match its shape ({error})') from error


def _reconstruct(subtype: Any, shape: Any, dtype: Any) -> _Array:
    if subtype is not _Array:
        raise RefusedError('numpy.core.multiarray._reconstruct of another class than numpy.ndarray')
    return _Array.__new__(_Array)


def _scalar(dtype: Any, data: Any = None) -> Any:
    if type(dtype) is not _Dtype or type(data) is not bytes or len(data) != dtype.value.itemsize:
        raise RefusedError('numpy.core.multiarray.scalar with unknown arguments')
    return np.frombuffer(data, dtype.value)[0]


def _statistic(owner: Any, name: Any, *default: Any) -> _Statistic:
    """``builtins.getattr`` for ``getattr(HistoryBuffer, 'min' | 'max' | 'current' | 'mean')`` and nothing else."""
    if owner is not _History or type(name) is not str or name not in STATISTICS or default:
        shown = 'HistoryBuffer' if owner is _History else type(owner).__name__
        raise RefusedError(f'builtins.getattr({shown}, {name!r})')
    return _Statistic(name)


def _config_dict(mapping: Any = None) -> Any:
    if type(mapping) is not dict:
        raise RefusedError('mmengine.config.config.ConfigDict of something that is no dict')
    return ConfigDict(mapping)


# Name in the pickle -> stand-in
ALLOWED: dict[str, Any] = {
    'builtins.getattr': _statistic,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'mmengine.logging.message_hub.MessageHub': _Hub,
    'mmengine.config.config.ConfigDict': _config_dict,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    'numpy.core.multiarray._reconstruct': _reconstruct,
    'numpy._core.multiarray._reconstruct': _reconstruct,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
}


def _value(obj: Any) -> Any:
    if isinstance(obj, (_Array, _Dtype)):
        if not hasattr(obj, 'value'):
            raise RefusedError('numpy.ndarray without data')
        return obj.value
    return obj


def resolve(obj: Any, seen: dict[int, Any]) -> Any:
    """Replace every stand-in inside ``obj`` by the real object; containers are changed in place.

    Args:
        obj: What the unpickler returned.
        seen: Objects met so far by their id (kept alive by the value), so that shared and cyclic ones are walked once.

    Raises:
        RefusedError: A stand-in was left without its state.
    """
    if id(obj) in seen:
        return seen[id(obj)][1]
    if isinstance(obj, (_History, _Hub, _Statistic)):
        raise RefusedError(f'an unfinished {type(obj).__bases__[0].__name__.replace("object", "getattr")}')
    if isinstance(obj, (_Array, _Dtype)):
        result = _value(obj)
    elif isinstance(obj, dict):
        seen[id(obj)] = (obj, obj)
        for key in list(dict.keys(obj)):
            dict.__setitem__(obj, key, resolve(dict.__getitem__(obj, key), seen))
        return obj
    elif type(obj) is list:
        seen[id(obj)] = (obj, obj)
        obj[:] = [resolve(item, seen) for item in obj]
        return obj
    elif type(obj) is tuple:
        items = tuple(resolve(item, seen) for item in obj)
        result = items if any(a is not b for a, b in zip(items, obj, strict=True)) else obj
    else:
        return obj
    seen[id(obj)] = (obj, result)
    return result
