"""Every config is built, trains one step and is tested, on tiny inputs, through the same runner that the tools use.

A config that only changes another one's backbone or depth is built and trains one step; the rest of it has been run.
"""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict

from eff_plugins.engine.runs import build_runner, load_config

ROOT = Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in ROOT.glob('*/*.py') if p.parent.name != '_base_')
SECOND = [name for name in CONFIGS if any(part in name for part in ('_mobilenet', '-r101', '-r56_'))]
HOSTS = {'mmdet': 'mmdet', 'mmseg': 'mmseg', 'mmaction': 'mmaction', 'mmdet3d': 'mmdet3d'}


def shrink(cfg, work_dir):
    """Two small samples, one step, no workers, no download."""

    def visit(part):
        if isinstance(part, dict):
            if str(part.get('type', '')).split('.')[-1].startswith('Digit') and 'split' in part:
                part['generator'] = dict(count=4)
            if isinstance(part.get('init_cfg'), dict):
                part['init_cfg'] = None
            if 'score_thr' in part:  # an untrained detector would find nothing
                part['score_thr'] = 0.0
            if part.get('type') == 'RANet':  # ImageNet's classifiers hold most of its 131 M parameters
                part['classifier_channels'] = 16
            if part.get('type') == 'eff_plugins.ScaleAwareDetector':  # nor would an untrained histogram ask for a zoom
                part['threshold'] = 0.0
            if 'num_grids' in part:  # SOLO: with this threshold every cell of every class makes a mask
                part['num_grids'] = [6, 5, 4, 3, 2]
            for name, most in (('nms_pre', 100), ('max_per_img', 20), ('filter_thr', 0.0), ('mask_thr', 0.0)):
                if name in part:
                    part[name] = min(part[name], most)
            if part.get('type') in ('Resize', 'RandomResize') and cfg.default_scope == 'mmdet':
                part['scale'] = (160, 128)
            for value in part.values():
                visit(value)
        elif isinstance(part, (list, tuple)):
            for value in part:
                visit(value)

    visit(cfg._cfg_dict)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg[name]
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        dataset = loader.dataset
        while 'dataset' in dataset:  # a wrapper such as RepeatDataset
            dataset['times'] = 1
            dataset = dataset.dataset
        dataset['indices'] = 2
    cfg.train_cfg = ConfigDict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1000)
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir = str(work_dir)
    cfg.log_level = 'WARNING'
    return cfg


def prepare(config, work_dir):
    cfg = load_config(str(ROOT / config))
    host = HOSTS.get(cfg.default_scope)
    if host:
        pytest.importorskip(host)
    cfg = shrink(cfg, work_dir)
    cfg.experiment_name = config.replace('/', '_')
    return build_runner(cfg)


@pytest.mark.parametrize('config', [name for name in CONFIGS if name not in SECOND])
def test_config_trains_and_tests(config, tiny_root, tmp_path):
    runner = prepare(config, tmp_path)
    runner.train()
    losses = [float(value) for key, (value, _) in _scalars(runner).items() if key == 'train/loss']
    assert losses and all(math.isfinite(loss) for loss in losses)
    assert list(Path(tmp_path).glob('epoch_1.pth'))
    metrics = runner.test()
    assert metrics and all(value is not None for value in metrics.values())


@pytest.mark.parametrize('config', SECOND)
def test_config_with_a_second_backbone_trains_a_step(config, tiny_root, tmp_path):
    runner = prepare(config, tmp_path)
    model = runner.model.train()
    model.init_weights()
    before = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    batch = next(iter(runner.build_dataloader(runner._train_dataloader)))
    losses = model.train_step(batch, runner.build_optim_wrapper(runner.optim_wrapper))
    assert math.isfinite(float(losses['loss']))
    after = dict(model.named_parameters())
    assert all(torch.isfinite(after[name]).all() for name in before)
    changed = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert len(changed) > 0.5 * len(before)  # a head without a match on a level gives it no gradient


def _scalars(runner):
    return {key: (buffer.current(), None) for key, buffer in runner.message_hub.log_scalars.items()}


def test_there_is_a_readme_and_a_metafile_for_each_family():
    for folder in sorted(p for p in ROOT.iterdir() if p.is_dir() and p.name != '_base_'):
        assert (folder / 'README.md').is_file(), folder.name
        assert (folder / 'metafile.yml').is_file(), folder.name
