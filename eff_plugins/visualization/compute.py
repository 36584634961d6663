"""Where a dynamic network computed: a heat map over the picture, in shares of what the dense network spends there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eff_plugins.dynamic.recorder import Entry, Stats
from eff_plugins.dynamic.watch import Pass
from eff_plugins.ops.plan import spread
from eff_plugins.visualization.pictures import write_picture

_STRIP, _LINE = 26, 18  # heights of the colour scale and of a line of text, pixels
_NARROWEST = 240  # the legend needs as much
_TILE = 110  # at least, of a stage's picture with its caption


def compute_map(stats: Stats, size: tuple[int, int], sample: int = 0, network_macs: float | None = None) -> np.ndarray:
    """Share of the dense network's multiply-adds spent at each place of one picture.

    A dynamic module spends its dense multiply-adds, spread evenly, where its mask is on, and elsewhere the least it can
    (nothing, interpolation, half the resolution); a module without a mask spends evenly what it spent. Layers outside of
    dynamic modules and the policies are the floor.

    Args:
        stats: Of one forward pass.
        size: (H, W) that the masks lie over: the batch as the network saw it, padding included.
        sample: Which picture of the batch.
        network_macs: Of the dense network for one sample; None: the dynamic modules are all there is.

    Returns:
        (H, W) float32: 1 where everything was computed.

    Raises:
        ValueError: Nothing was recorded, or there is no such sample.
    """
    calls = _calls(stats, sample)
    dense = sum(entry.dense_macs for entry, _ in calls)
    total = dense if network_macs is None else network_macs
    spent = torch.full(size, max(total - dense, 0.0))
    for entry, row in calls:
        mask = _mask(entry, row, size)
        if mask is None:
            spent += _spent(entry, row, stats)
        else:
            off = entry.floor_macs - entry.policy_macs
            spent += entry.floor_macs + (entry.dense_macs - off) * mask
    return (spent / total).numpy()


def stage_masks(stats: Stats, size: tuple[int, int], sample: int = 0) -> dict[str, np.ndarray]:
    """Where the blocks of each stage computed one picture: the share of them that were on.

    Args:
        stats: Of one forward pass.
        size: As for :func:`compute_map`.
        sample: Which picture of the batch.

    Returns:
        Stage, such as ``'layer1'`` -> (H, W) float32; of dynamic modules with masks alone, in the order of their calls.

    Raises:
        ValueError: As there.
    """
    found: dict[str, list[Tensor]] = {}
    for entry, row in _calls(stats, sample):
        mask = _mask(entry, row, size)
        if mask is not None:
            found.setdefault(_stage(entry.name), []).append(mask)
    return {name: torch.stack(masks).mean(0).numpy() for name, masks in found.items()}


def _mask(entry: Entry, row: int | None, size: tuple[int, int]) -> Tensor | None:
    """What was on in one sample, at each pixel of the input: (H, W); None where that is not known."""
    if row is None or entry.mask is None or entry.mask.ndim != 4:
        return None
    mask = entry.mask[row : row + 1, :1].float().cpu()
    # a map whose stride does not divide the input stands out of it, as cells do: cut off, not squeezed into the picture
    for side in (entry.cell,) if entry.cell else (2**i for i in range(max(size).bit_length() + 1)):
        if (-(-size[0] // side), -(-size[1] // side)) == mask.shape[2:]:
            return spread(mask, (side, side), size)[0, 0]
    return F.interpolate(mask, size, mode='nearest-exact')[0, 0]  # of a resized picture, or of another stride


def _stage(name: str) -> str:
    """The path of a block's stage, without the block's number and the network's name."""
    parts = name.removesuffix('.dynamic').removeprefix('backbone').strip('.').split('.')
    return '.'.join(parts[:-1] if len(parts) > 1 and parts[-1].isdigit() else parts) or 'network'


def executed_share(stats: Stats, sample: int, network_macs: float) -> float:
    """Share of the dense network's multiply-adds that one sample of the batch took, policies included."""
    return 1 - sum(entry.dense_macs - _spent(entry, row, stats) for entry, row in _calls(stats, sample)) / network_macs


def _calls(stats: Stats, sample: int) -> list[tuple[Entry, int | None]]:
    """The calls that one sample was in, and its row there; None where not all of the batch came there.

    A module may be called with the whole batch, or with a part of it at a time (pictures of different sizes).

    Raises:
        ValueError: There is no such sample.
    """
    if not 0 <= sample < stats.samples:
        raise ValueError(f'sample={sample}: {stats.samples} samples were recorded')
    counts: dict[str, int] = {}
    for entry in stats.entries:
        counts[entry.name] = counts.get(entry.name, 0) + len(entry.macs)
    calls: list[tuple[Entry, int | None]] = []
    done = dict.fromkeys(counts, 0)
    for entry in stats.entries:
        first, done[entry.name] = done[entry.name], done[entry.name] + len(entry.macs)
        if len(entry.macs) == stats.samples:
            calls.append((entry, sample))
        elif counts[entry.name] != stats.samples:
            calls.append((entry, None))
        elif first <= sample < done[entry.name]:
            calls.append((entry, sample - first))
    return calls


def _spent(entry: Entry, row: int | None, stats: Stats) -> float:
    """What one sample spent in a call; where not all of the batch came there, the mean."""
    macs = entry.macs.detach().float()
    return float(macs.sum()) / stats.samples if row is None else float(macs[row])


def floor_share(done: Pass, sample: int) -> float:
    """The least share of the dense network's multiply-adds that one picture can take."""
    avoidable = sum(entry.dense_macs - entry.floor_macs for entry, _ in _calls(done.stats, sample))
    return 1 - avoidable / done.network_macs


def legend_lines(done: Pass, sample: int) -> list[str]:
    """What a legend says of one picture: its share, the least possible, and what it took of several (an exit ...)."""
    share = executed_share(done.stats, sample, done.network_macs)
    lines = [f'spent {100 * share:.0f} % of dense, floor {100 * floor_share(done, sample):.0f} %']
    for entry, row in _calls(done.stats, sample):
        taken = ', '.join(entry.labels)
        if entry.choice is not None and row is not None:
            number = int(entry.choice[row])
            taken = entry.labels[number] if entry.labels else f'choice {number}'
        if taken and row is not None:
            lines.append(f'{entry.name.rpartition(".")[2] or "network"}: {taken}')
    return lines


def undo(heat: np.ndarray, metainfo: Any, shape: tuple[int, int]) -> np.ndarray:
    """Bring a map over the network's input back to the picture on the disk.

    Args:
        heat: (H, W), over the padded input; pictures lie in its upper left corner.
        metainfo: The framework's, with ``ori_shape`` and ``scale_factor`` (width, height), or with ``img_shape``; without
            them the picture fills the input.
        shape: (H', W') of the picture.

    Returns:
        (H', W').
    """
    height, width = heat.shape
    if 'scale_factor' in metainfo and 'ori_shape' in metainfo:
        # not img_shape, which a padding step of the pipeline makes that of the padded picture
        wide, high = metainfo['scale_factor'][:2]
        height, width = round(metainfo['ori_shape'][0] * high), round(metainfo['ori_shape'][1] * wide)
    elif 'img_shape' in metainfo:
        height, width = metainfo['img_shape'][:2]
    content = torch.from_numpy(np.ascontiguousarray(heat[: max(height, 1), : max(width, 1)]))
    return F.interpolate(content[None, None], shape, mode='nearest-exact')[0, 0].numpy()


def _colours(values: np.ndarray) -> np.ndarray:
    """(...) in [0, 1] -> (..., 3) uint8 RGB, dark blue to red."""
    import cv2

    grey = np.clip(np.asarray(values) * 255, 0, 255).astype(np.uint8)
    return cv2.applyColorMap(grey.reshape(-1, 1), cv2.COLORMAP_TURBO)[:, 0, ::-1].reshape(*grey.shape, 3)


def paint(picture: np.ndarray, heat: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Lay a map over a picture.

    Args:
        picture: (H, W, 3) uint8 RGB.
        heat: (H, W), 0 (blue) to 1 (red).
        strength: Weight of the colours.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: The sizes differ.
    """
    if picture.shape[:2] != heat.shape:
        raise ValueError(f'a map of {heat.shape} does not cover a picture of {picture.shape[:2]}')
    grey = picture.mean(2, keepdims=True)  # colours are the map's alone
    return ((1 - strength) * grey + strength * _colours(heat)).round().astype(np.uint8)


def with_legend(painted: np.ndarray, lines: Sequence[str], low: float = 0.0) -> np.ndarray:
    """Put the colour scale (``low`` to 1 of the dense multiply-adds) and ``lines`` below a painted picture (H, W, 3)."""
    import cv2

    width = max(painted.shape[1], _NARROWEST)
    canvas = np.full((painted.shape[0] + _STRIP + _LINE * len(lines) + 4, width, 3), 255, np.uint8)
    canvas[: painted.shape[0], : painted.shape[1]] = painted
    top = painted.shape[0] + 4
    canvas[top : top + 10, 40:-50] = _colours(np.linspace(0, 1, width - 90))
    font, black = cv2.FONT_HERSHEY_SIMPLEX, (0, 0, 0)
    cv2.putText(canvas, f'{100 * low:.0f} %', (6, top + 10), font, 0.4, black, 1, cv2.LINE_AA)
    cv2.putText(canvas, '100 %', (width - 46, top + 10), font, 0.4, black, 1, cv2.LINE_AA)
    for i, line in enumerate(lines):
        cv2.putText(canvas, line, (6, top + _STRIP + _LINE * i), font, 0.42, black, 1, cv2.LINE_AA)
    return canvas


def stage_tiles(picture: np.ndarray, masks: dict[str, np.ndarray], width: int) -> np.ndarray:
    """The picture once a stage, painted with where its blocks computed, and captions: (H', width, 3) uint8 RGB.

    Args:
        picture: (H, W, 3) uint8 RGB.
        masks: Stage -> (H, W), 0 to 1, as from :func:`stage_masks`.
        width: Of all tiles beside each other, pixels.
    """
    import cv2

    columns = max(1, min(len(masks), width // _TILE))
    wide = width // columns
    high = max(1, round(picture.shape[0] * (wide - 2) / picture.shape[1]))
    tiles = []
    for name, mask in masks.items():
        tile = np.full((high + _LINE + 4, wide, 3), 255, np.uint8)
        tile[2 : high + 2, : wide - 2] = cv2.resize(
            paint(picture, mask), (wide - 2, high), interpolation=cv2.INTER_AREA
        )
        caption = f'{name} {100 * float(mask.mean()):.0f} %'
        place, black = (2, high + _LINE - 3), (0, 0, 0)
        cv2.putText(tile, caption, place, cv2.FONT_HERSHEY_SIMPLEX, 0.38, black, 1, cv2.LINE_AA)
        tiles.append(tile)
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    rows = np.concatenate([np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)])
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1]), (0, 0)), constant_values=255)


def beside(drawing: np.ndarray, panel: np.ndarray) -> np.ndarray:
    """Two pictures next to each other from their upper edges, white where one is lower."""
    height = max(len(drawing), len(panel))
    parts = [np.pad(p, ((0, height - len(p)), (0, 0), (0, 0)), constant_values=255) for p in (drawing, panel)]
    return np.concatenate(parts, 1)


def compute_panel(
    picture: np.ndarray, done: Pass, sample: int, metainfo: Any, height: int | None = None
) -> np.ndarray | None:
    """The painted picture, its legend and the stages; None where the network's input is no picture or was cut into several.

    Which of the recorded samples are windows of which picture is not known.

    Args:
        picture: (H, W, 3) uint8 RGB: what ``metainfo`` leads back to.
        done: The forward pass.
        sample: Which picture of the batch.
        metainfo: As for :func:`undo`.
        height: Of the painted picture; by default its own.
    """
    if done.size is None or done.stats.samples != done.batch:
        return None
    whole, floor = compute_map(done.stats, done.size, sample, done.network_macs), floor_share(done, sample)
    heat = undo(whole, metainfo, (picture.shape[0], picture.shape[1]))
    # where most of a network is static, the colours tell apart what could have been left out
    painted = paint(picture, (heat - floor) / max(1 - floor, 1e-6))
    if height is not None and height != len(painted):
        import cv2

        wide = max(1, round(painted.shape[1] * height / len(painted)))
        painted = cv2.resize(painted, (wide, height), interpolation=cv2.INTER_NEAREST)
    panel = with_legend(painted, legend_lines(done, sample), floor)
    masks = stage_masks(done.stats, done.size, sample)
    if len(masks) < 2:  # the map shows all there is
        return panel
    shape = (picture.shape[0], picture.shape[1])
    tiles = {name: undo(mask, metainfo, shape) for name, mask in masks.items()}
    return np.concatenate([panel, stage_tiles(picture, tiles, panel.shape[1])])


def add_panel(file: Path, picture: np.ndarray, done: Pass | None, sample: int, metainfo: Any) -> None:
    """Put the heat map beside the drawing that lies in ``file``; nothing where there is no drawing or no map."""
    from eff_plugins.datasets.transforms import read_image

    if done is None or not file.is_file():
        return
    drawing = read_image(file)
    panel = compute_panel(picture, done, sample, metainfo, len(drawing))
    if panel is not None:
        write_picture(file, beside(drawing, panel))
