"""A checkpoint hook that leaves a loadable checkpoint behind whenever the process is killed.

mmengine's ``CheckpointHook`` deletes the oldest checkpoint before it saves, writes the new one in place and rewrites
``last_checkpoint`` in place: killed in between, ``max_keep_ckpts=1`` leaves nothing to resume from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from ..registry import HOOKS

PARTIAL = '.partial'


def fsync_folder(folder: str) -> None:
    """Make renames in ``folder`` survive a power failure; where the system cannot sync a folder, do nothing."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def commit_file(temporary: str, final: str) -> None:
    """Sync ``temporary`` to disk and rename it to ``final`` in the same folder, which replaces an old file at once."""
    handle = os.open(temporary, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, final)
    fsync_folder(os.path.dirname(final) or '.')


def partial_path(final: str) -> str:
    """Temporary name beside ``final``; hidden, so that no pattern for checkpoints finds it."""
    folder, name = os.path.split(final)
    return os.path.join(folder, f'.{name}{PARTIAL}')


class _AtomicSaves:
    """A runner whose ``save_checkpoint`` is atomic; all else is the runner's own."""

    def __init__(self, runner: Any, hook: AtomicCheckpointHook) -> None:
        self._runner = runner
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        self._hook.save_atomically(self._runner, out_dir, filename, *args, **kwargs)


class _LateRemovals:
    """A file backend that collects removals."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.removed: list[tuple[Any, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.removed.append((self._backend.remove, path))

    def rmtree(self, path: str) -> None:
        self.removed.append((self._backend.rmtree, path))


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, safe against ``kill -9`` and power failure at any moment.

    A checkpoint is written to a hidden temporary file in the same folder, synced and renamed; ``last_checkpoint`` follows
    in the same way, and only then the oldest checkpoint goes. So ``--resume`` always finds a whole checkpoint once the
    first one is saved, with ``max_keep_ckpts=1`` and with ``save_best`` too. Temporary files of a killed run are removed
    when the next one starts. Storage that is no local file system is written by its own backend, in the same order.

    Args:
        *args: As for ``mmengine.hooks.CheckpointHook``.
        **kwargs: As for ``mmengine.hooks.CheckpointHook``.
    """

    file_backend: Any

    def before_train(self, runner: Any) -> None:
        """Find the folder, remove what a killed run left half-written, drop checkpoints that it had still to delete."""
        super().before_train(runner)
        if not is_main_process():
            return
        for folder in {str(self.out_dir), runner.work_dir}:
            if self._is_local(runner) and os.path.isdir(folder):
                for entry in os.scandir(folder):
                    if entry.name.startswith('.') and entry.name.endswith(PARTIAL) and entry.is_file():
                        os.remove(entry.path)

    def save_atomically(self, runner: Any, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """``runner.save_checkpoint`` through a temporary file.

        Args:
            runner: The runner.
            out_dir: Folder of the checkpoint.
            filename: Its final name.
            *args: Passed on to ``runner.save_checkpoint``.
            **kwargs: Passed on to ``runner.save_checkpoint``.
        """
        if not self._is_local(runner):
            runner.save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        final = os.path.join(out_dir, filename)
        temporary = partial_path(final)
        try:
            runner.save_checkpoint(out_dir, os.path.basename(temporary), *args, **kwargs)
            if is_main_process():
                commit_file(temporary, final)
        except BaseException:  # a full disk must not leave the part behind
            if is_main_process() and os.path.exists(temporary):
                os.remove(temporary)
            raise

    def _is_local(self, runner: Any) -> bool:
        # strategies of FlexibleRunner write folders of shards from all ranks: those are left to them
        backend = getattr(self.file_backend, '_backend', self.file_backend)
        backend = getattr(backend, 'client', backend)
        local = isinstance(backend, LocalBackend) or type(backend).__name__ == 'HardDiskBackend'
        return local and isinstance(getattr(runner, '_runner', runner), Runner)

    @contextmanager
    def _removing_late(self) -> Iterator[None]:
        """Let every removal wait until the block, with its saves, has succeeded."""
        backend = self.file_backend
        late = _LateRemovals(backend)
        self.file_backend = late
        try:
            yield
        finally:
            self.file_backend = backend
        for remove, path in late.removed:
            if backend.exists(path):
                remove(path)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        runner = getattr(runner, '_runner', runner)
        outdated: list[int] = []
        if self.max_keep_ckpts > 0:
            kept = [*self.keep_ckpt_ids]
            if step not in kept[-1:]:
                kept.append(step)
            outdated = kept[: -self.max_keep_ckpts]
            self.keep_ckpt_ids.extend([step] if step not in [*self.keep_ckpt_ids][-1:] else [])
            # The outdated ones are in the list that is saved: a run killed before it deletes them does so on resume.
            runner.message_hub.update_info('keep_ckpt_ids', kept)

        filename = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, filename)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        self.save_atomically(
            runner,
            self.out_dir,
            filename,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', [*self.keep_ckpt_ids])
        if not is_main_process():
            return
        pointer = os.path.join(runner.work_dir, 'last_checkpoint')
        with open(partial_path(pointer), 'w', encoding='utf-8') as file:
            file.write(str(self.last_ckpt))
        commit_file(partial_path(pointer), pointer)
        for old in outdated:
            self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(old)))

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _save_best_checkpoint(self, runner: Any, metrics: dict) -> None:
        if self.save_best:
            with self._removing_late():
                super()._save_best_checkpoint(_AtomicSaves(runner, self), metrics)
