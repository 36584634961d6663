"""Hooks that save a drawing of every tested item; ``tools/test.py --show-dir`` puts the right one into a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from eff_plugins.datasets.transforms import read_image
from eff_plugins.dynamic.watch import Pass
from eff_plugins.engine.execution import ExecutionHook
from eff_plugins.registry import HOOKS
from eff_plugins.visualization.compute import add_panel


class DrawingHook(Hook):
    """Gives every tested item a file of its own in one folder.

    Args:
        out_dir: Folder for the drawings; it is made.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)
        self._count = 0

    def before_test(self, runner: Runner) -> None:
        self._count = 0

    def last_pass(self, runner: Runner) -> Pass | None:
        """What a dynamic network did with the batch at hand; None for a static one."""
        watches = [hook.watch for hook in runner.hooks if isinstance(hook, ExecutionHook)]
        return watches[0].last if watches and watches[0] is not None else None

    def next_file(self, runner: Runner, source: str | None = None) -> Path:
        """The next item's file: its place in the data set, then the name of the file that it was read from.

        The place keeps pictures of one name in several folders apart. With several processes it follows mmengine's
        ``DefaultSampler``: they take turns, and what is left over goes on from the beginning.
        """
        size = len(runner.test_dataloader.dataset)
        place = (self._count * runner.world_size + runner.rank) % size
        self._count += 1
        return self.out_dir / (f'{place:05d}_{Path(source).stem}.png' if source else f'{place:05d}.png')


@HOOKS.register_module()
class ImageVisualizationHook(DrawingHook):
    """Lets the framework's visualiser (mmdet's, mmseg's) draw labels (left) and predictions (right) on every picture.

    mmdet's own hook names files after the pictures alone, so that one overwrites another, and mmseg's draws into a folder
    of the visualiser's. Those visualisers draw in the first process only.

    Args:
        out_dir: Folder for the drawings.
        options: Further arguments of the visualiser's ``add_datasample``.
    """

    def __init__(self, out_dir: str, options: dict | None = None) -> None:
        super().__init__(out_dir)
        self.options = options or {}

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        """Draw the batch over the pictures as they are on the disk; beside them where a dynamic network computed."""
        for i, sample in enumerate(outputs or ()):
            out = self.next_file(runner, sample.img_path)
            out.parent.mkdir(parents=True, exist_ok=True)
            picture = read_image(sample.img_path)
            runner.visualizer.add_datasample('test', picture, sample, out_file=str(out), **self.options)
            add_panel(out, picture, self.last_pass(runner), i, sample.metainfo)
