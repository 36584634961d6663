"""What can be timed: networks by name (the suite's, timm's, torchvision's) and models of configs, with inputs for them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from eff_plugins.compat import require
from eff_plugins.deploy.prepare import Preparation, prepare
from eff_plugins.engine.calibration import in_process, training_batches
from eff_plugins.engine.runs import check_checkpoint, load_config
from eff_plugins.models.resolution.resample import resize
from eff_plugins.naming import nearest

DATA = ('real', 'random')
DEFAULT_SIZE = 224
# Samples of the training split that a learned policy's thresholds are set on
CALIBRATED = 64
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Frameworks whose models take pictures; the others' need clips or point clouds, which only their data sets have.
_PICTURES = ('eff_plugins', 'mmdet', 'mmseg')


def pictures(batch_size: int, size: int, data: str, count: int, seed: int = 0) -> list[Tensor]:
    """``count`` batches (B, 3, size, size), float32, normalised.

    Args:
        batch_size: B.
        size: Side in pixels.
        data: ``'real'``: random crops of scikit-learn's two photographs; ``'random'``: normal noise.
        count: Number of batches.
        seed: Of the crops or the noise.

    Raises:
        MissingExtraError: scikit-learn, which brings the photographs, is not installed.
    """
    generator = torch.Generator().manual_seed(seed)
    if data == 'random':
        return [torch.randn(batch_size, 3, size, size, generator=generator) for _ in range(count)]
    rng = np.random.default_rng(seed)
    crops = [_crop(rng, size) for _ in range(batch_size * count)]
    return list(torch.cat(crops).split(batch_size))


def _photographs() -> list[np.ndarray]:
    return list(require('sklearn.datasets', 'benchmark').load_sample_images().images)


def _crop(rng: np.random.Generator, size: int) -> Tensor:
    """A square of a photograph, at least half as high as it, resized: (1, 3, size, size)."""
    photos = _photographs()
    photo = photos[rng.integers(len(photos))]
    side = int(rng.integers(min(photo.shape[:2]) // 2, min(photo.shape[:2]) + 1))
    top, left = (int(rng.integers(extent - side + 1)) for extent in photo.shape[:2])
    square = torch.from_numpy(photo[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None].float() / 255
    return (resize(square, (size, size)) - torch.tensor(_MEAN).view(1, 3, 1, 1)) / torch.tensor(_STD).view(1, 3, 1, 1)


@dataclass
class Subject:
    """A network that maps pictures (B, 3, H, W) to tensors.

    Attributes:
        name: As the user wrote it.
        model: In eval mode, not prepared.
        notes: What the user should know about the figures.
        checkpoint: Where its weights come from; None: they are random.
        cfg: The config that it was built from, if any.
    """

    name: str
    model: nn.Module
    notes: tuple[str, ...] = ()
    checkpoint: str | None = None
    cfg: Config | None = None

    def prepare(self, how: Preparation) -> nn.Module:
        """The network as it is timed."""
        return prepare(self.model, how)

    def batches(self, batch_size: int, size: int | None, data: str, count: int, how: Preparation) -> list[Any]:
        """``count`` inputs for :meth:`call`."""
        if is_config(data):
            return [self._sized(x, size, how) for x in self._foreign(data, batch_size, count)]
        if data == 'real' and self.cfg is not None:
            try:
                found = _preprocess(self.cfg, _batches_of(self.cfg, self.name, batch_size, count))
            except FileNotFoundError as error:
                self.note_absent(error)
            else:
                return [self._sized(x, size, how) for x in found]
        return [how.inputs(x) for x in pictures(batch_size, size or DEFAULT_SIZE, data, count)]

    def training_batches(self, size: int | None, how: Preparation) -> list[Any]:
        """Inputs for :meth:`call` from the training split of its config, to calibrate on."""
        assert self.cfg is not None
        return [self._sized(x, size, how) for x in _preprocess(self.cfg, _training_batches_of(self.cfg))]

    def note_absent(self, error: FileNotFoundError) -> None:
        """Note, once, that photographs stand for the test set."""
        note = f'{self.name}: test set not found ({error}); photographs instead'
        if note not in self.notes:
            self.notes += (note,)

    def _foreign(self, path: str, batch_size: int, count: int) -> list[Tensor]:
        cfg = load_config(path)
        return _preprocess(cfg, _batches_of(cfg, path, batch_size, count))

    def _sized(self, x: Tensor, size: int | None, how: Preparation) -> Tensor:
        return how.inputs(x if size is None else resize(x, (size, size)))

    def call(self, model: nn.Module, batch: Any, how: Preparation) -> Any:
        """Run the prepared model once."""
        return model(batch)

    def input_size(self, batch: Any) -> tuple[int, int] | None:
        """(H, W) of what the network sees; None where it sees no pictures."""
        return batch.shape[-2], batch.shape[-1]


class ConfigSubject(Subject):
    """A model of a config, run through ``test_step`` on batches of its test set (or on pictures, where that is absent)."""

    cfg: Config

    @property
    def scope(self) -> str:
        """The framework that the config is for."""
        return self.cfg.get('default_scope', 'eff_plugins')

    def prepare(self, how: Preparation) -> nn.Module:
        # bf16 by autocast: what comes after the network (NMS, masks) wants float32. torch.compile for the backbone alone:
        # ``test_step`` is no ``forward``, and heads branch on data.
        model = prepare(self.model, replace(how, dtype='float32', compile=False))
        if how.compile:
            if not isinstance(getattr(model, 'backbone', None), nn.Module):
                raise ValueError(f'{self.name}: --compile compiles the backbone, and this model has none')
            model.backbone = torch.compile(model.backbone)  # type: ignore[assignment, arg-type]
        return model

    def batches(self, batch_size: int, size: int | None, data: str, count: int, how: Preparation) -> list[Any]:
        if size is not None:
            raise ValueError(f'{self.name}: its pipeline sets the input size; leave --size out or use --cfg-options')
        if is_config(data):
            with _scope_of(self.cfg):  # again afterwards
                return _batches_of(load_config(data), data, batch_size, count)
        if data == 'real':
            try:
                return _batches_of(self.cfg, self.name, batch_size, count)
            except FileNotFoundError as error:
                if self.scope not in _PICTURES:
                    raise
                self.note_absent(error)
        if self.scope not in _PICTURES:
            raise ValueError(f'{self.name}: a model of {self.scope} takes no pictures; use --data real')
        return self._from_pictures(batch_size, data, count)

    def _from_pictures(self, batch_size: int, data: str, count: int) -> list[Any]:
        from mmengine.dataset import pseudo_collate

        from eff_plugins.engine.infer import data_info, picture_pipeline
        from eff_plugins.visualization.pictures import write_picture

        rng = np.random.default_rng(0)
        images = (
            _photographs()
            if data == 'real'
            else [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(2)]
        )
        with _scope_of(self.cfg):
            pipeline = picture_pipeline(self.cfg)
        with tempfile.TemporaryDirectory() as folder:
            samples = []
            for i, image in enumerate(images):
                path = str(Path(folder) / f'{i}.png')
                write_picture(path, image)
                samples.append(pipeline(data_info(self.scope, path)))
        # one picture a batch where sizes differ after resizing would be another workload; the photographs have one size
        return [
            pseudo_collate([samples[(i * batch_size + j) % len(samples)] for j in range(batch_size)])
            for i in range(min(count, len(samples)))
        ]

    def training_batches(self, size: int | None, how: Preparation) -> list[Any]:
        return _training_batches_of(self.cfg)

    def call(self, model: nn.Module, batch: Any, how: Preparation) -> Any:
        kind = torch.device(how.device).type
        low = how.dtype != 'float32'
        with torch.autocast(kind, dtype=how.torch_dtype) if low else nullcontext():
            return model.test_step(batch)  # type: ignore[operator]

    def input_size(self, batch: Any) -> tuple[int, int] | None:
        inputs = self.model.data_preprocessor(batch, False)['inputs']  # type: ignore[operator]
        return (inputs.shape[-2], inputs.shape[-1]) if isinstance(inputs, Tensor) and inputs.dim() >= 4 else None


def _batches_of(cfg: Config, name: str, batch_size: int, count: int) -> list[Any]:
    """The first ``count`` batches of a config's test set."""
    from mmengine.runner import Runner

    loader = in_process(cfg.test_dataloader) | dict(batch_size=batch_size, drop_last=True)
    with _scope_of(cfg):
        found = list(islice(Runner.build_dataloader(loader), count))
    if not found:
        raise ValueError(f'{name}: its test set has fewer than --batch-size {batch_size} samples')
    return found


def _training_batches_of(cfg: Config) -> list[Any]:
    """Batches of a config's training split, to calibrate on."""
    with _scope_of(cfg):
        return list(training_batches(cfg, CALIBRATED))


def _scope_of(cfg: Config) -> AbstractContextManager:
    """Within the block types are looked up in the config's framework, whichever the last config read was for."""
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))


def _preprocess(cfg: Config, batches: Iterable[Any]) -> list[Tensor]:
    """Batches of a config's data as its own model would see them, (B, 3, H, W)."""
    with _scope_of(cfg):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
    found = [preprocessor(batch, False)['inputs'] for batch in batches]
    if not all(isinstance(x, Tensor) and x.ndim == 4 for x in found):
        raise ValueError('the data of this config are no pictures')
    return found


def split_specs(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Pair each model with the checkpoint that may follow it.

    ``['a.py', 'a.pth', 'b']`` gives ``[('a.py', 'a.pth'), ('b', None)]``.

    Raises:
        ValueError: A checkpoint does not follow a config.
    """
    pairs: list[tuple[str, str | None]] = []
    for word in words:
        if word.endswith(('.pth', '.pt', '.ckpt', '.safetensors')) or '://' in word:
            if not pairs or not is_config(pairs[-1][0]) or pairs[-1][1] is not None:
                raise ValueError(f'{word}: a checkpoint follows the config that it belongs to')
            pairs[-1] = (pairs[-1][0], word)
        else:
            pairs.append((word, None))
    return pairs


def find_subject(
    spec: str, checkpoint: str | None = None, cfg_options: dict | None = None, size: int | None = None
) -> Subject:
    """The model behind a name or a config.

    Args:
        spec: A name of ``eff_plugins.list_models()``, ``timm:NAME``, ``tv:NAME`` (torchvision) or a config file. Named
            networks get random weights and norm statistics, since time does not depend on them.
        checkpoint: Weights of a config's model; random where it is None.
        cfg_options: Overrides for a config.
        size: Side of the input that will be asked for. A classifier of a config can then be given pictures of that size
            past its pipeline.

    Raises:
        ValueError: Unknown name; the nearest are given.
        FileNotFoundError: There is no such config or checkpoint.
        MissingExtraError: timm, torchvision or the config's framework is not installed.
    """
    if is_config(spec):
        return _config_subject(spec, checkpoint, cfg_options, size)
    from eff_plugins.testing.oracles import build_oracle, randomise

    if ':' in spec:
        _check_foreign(spec)
        model = build_oracle(spec)
    else:
        from eff_plugins.hub import build_classifier

        model = build_classifier(spec).eval()
    randomise(model)
    return Subject(spec, model)


def is_config(spec: str) -> bool:
    """Whether ``spec`` is a config file, or ``package::path`` of one."""
    return spec.endswith('.py') or '::' in spec


def _check_foreign(spec: str) -> None:
    """Say which names are near where ``timm:NAME`` or ``tv:NAME`` does not exist."""
    source, _, name = spec.partition(':')
    unlisted = False
    if source == 'timm':
        timm = require('timm', f'benchmark of {spec}')
        known, unlisted = timm.list_models(), timm.is_model(name)  # its deprecated names still work
    elif source == 'tv':
        models = require('torchvision', f'benchmark of {spec}').models
        known = models.list_models(module=models)
    else:
        raise ValueError(f'{spec}: the prefix must be timm: or tv:')
    if name not in known and not unlisted:
        raise ValueError(f'unknown model {spec!r}; nearest: {nearest(name, known, f"{source}:")}')


def _config_subject(spec: str, checkpoint: str | None, cfg_options: dict | None, size: int | None) -> Subject:
    from mmengine.runner import load_checkpoint

    if checkpoint is not None:
        check_checkpoint(checkpoint)
    cfg = load_config(spec, cfg_options=cfg_options)
    model = MODELS.build(cfg.model).eval()
    notes: tuple[str, ...] = ()
    if checkpoint is None:
        _initialise(model)
        notes = (f'{spec}: no checkpoint, random weights',)
    else:
        try:
            load_checkpoint(model, checkpoint, map_location='cpu', strict=True)
        except RuntimeError as error:
            raise ValueError(f'{checkpoint} does not fit {spec}: {error}') from error
    if size is not None and cfg.get('default_scope', 'eff_plugins') == 'eff_plugins':
        return Subject(spec, model, notes, checkpoint, cfg)
    return ConfigSubject(spec, model, notes, checkpoint, cfg)


def _initialise(model: nn.Module) -> None:
    """The model's own random initialisation, without downloads and without mmengine's line for each parameter."""
    for module in model.modules():
        if isinstance(getattr(module, 'init_cfg', None), dict) and module.init_cfg.get('type') == 'Pretrained':  # type: ignore[union-attr, operator]
            module.init_cfg = None  # type: ignore[assignment]
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        model.init_weights()  # type: ignore[operator]
    finally:
        logger.setLevel(level)
