"""A tiny training run as a script: random augmentation, dropout, a log of each iteration's loss; it can be killed."""

import argparse
import json
import os
import random
import signal
import time

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.evaluator import BaseMetric
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from mmengine.runner import runner as runner_module
from torch import nn
from torch.utils.data import Dataset

import eff_plugins  # noqa: F401


@MODELS.register_module()
class ToyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, inputs, target, mode='tensor'):
        out = self.net(torch.stack(inputs) if isinstance(inputs, list) else inputs).squeeze(1)
        if mode == 'loss':
            noise = random.random() + np.random.rand()
            return {'loss_fit': ((out - torch.stack(list(target)).float()) ** 2).mean() * (1 + 0.1 * noise)}
        return list(out)


@DATASETS.register_module()
class ToyData(Dataset):
    metainfo = {'classes': ('a', 'b')}

    def __init__(self, size=23):
        self.size = size

    def __len__(self):
        return self.size

    def get_data_info(self, i):
        return {'width': 4 + i % 3, 'height': 5}

    def __getitem__(self, i):
        x = torch.linspace(0, 1, 8) * i / self.size
        x = x + torch.from_numpy(np.random.randn(8)).float() * 0.1 + torch.rand(8) * 0.1 + random.random() * 0.1
        return {'inputs': x, 'target': torch.tensor(float(i) / self.size)}


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Rises with each validation, so that every one is the best; draws random numbers."""

    def process(self, data_batch, data_samples):
        self.results.append(float(np.random.rand() + torch.rand(1)))

    def compute_metrics(self, results):
        return {'toy': time.time()}


@HOOKS.register_module()
class LossLog(Hook):
    """Appends [iteration, loss, batch_idx] to a file at once; kills the process where it is told to."""

    priority = 'LOWEST'

    def __init__(self, out, kill_after):
        self.out, self.kill_after = out, kill_after

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        row = [runner.iter, float(outputs['loss']), batch_idx]
        with open(f'{self.out}.{get_rank()}', 'a') as file:
            file.write(json.dumps(row) + '\n')
        if runner.iter + 1 == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in_save(number):
    """Kill in the middle of the ``number``-th write of a checkpoint: half of it is on disk."""
    count = 0
    put = LocalBackend.put

    def slow(self, obj, filepath):
        nonlocal count
        if '.pth' in str(filepath):
            count += 1
            if count == number:
                with open(filepath, 'wb') as file:
                    file.write(obj[: len(obj) // 2])
                    file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        put(self, obj, filepath)

    LocalBackend.put = slow


def config(args):
    by_epoch = args.loop == 'epoch'
    sampler = {'type': 'InfiniteSampler' if args.sampler == 'infinite' else 'DefaultSampler', 'shuffle': True}
    loader = {
        'dataset': {'type': 'ToyData'},
        'sampler': sampler,
        'num_workers': args.workers,
        'persistent_workers': args.persistent,
    }
    if args.sampler == 'aspect':
        loader['batch_sampler'] = {'type': 'mmdet.AspectRatioBatchSampler'}
    loader['batch_size'] = 3
    cfg = {
        'model': {'type': 'ToyModel'},
        'work_dir': args.work_dir,
        'train_dataloader': loader,
        'train_cfg': {'by_epoch': True, 'max_epochs': 3} if by_epoch else {'by_epoch': False, 'max_iters': 20},
        'optim_wrapper': {
            'optimizer': {'type': 'SGD', 'lr': 0.05, 'momentum': 0.9},
            'accumulative_counts': args.accumulate,
        },
        'param_scheduler': {'type': 'LinearLR', 'start_factor': 0.1, 'by_epoch': False, 'begin': 0, 'end': 15},
        'default_hooks': {
            'checkpoint': {
                'type': 'eff_plugins.AtomicCheckpointHook',
                'interval': args.interval,
                'by_epoch': args.save == 'epoch',
                'max_keep_ckpts': 1,
                'save_best': 'toy' if args.best else None,
                'rule': 'greater' if args.best else None,
            }
        },
        'custom_hooks': [
            {'type': 'eff_plugins.ResumeStateHook'},
            {'type': 'eff_plugins.FiniteLossHook'},
            {'type': 'LossLog', 'out': args.out, 'kill_after': args.kill_after},
        ],
        'randomness': {'seed': args.seed},
        'resume': args.resume,
        'launcher': args.launcher,
        'env_cfg': {'dist_cfg': {'backend': 'gloo'}},
        'log_level': 'INFO',
    }
    if args.best:
        cfg['val_dataloader'] = {
            'dataset': {'type': 'ToyData'},
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'batch_size': 5,
        }
        cfg['val_cfg'] = {}
        cfg['val_evaluator'] = {'type': 'ToyMetric'}
    return cfg


def arguments(argv=None):
    parser = argparse.ArgumentParser()
    parser.add_argument('--work-dir')
    parser.add_argument('--out')
    parser.add_argument('--loop', default='epoch')
    parser.add_argument('--sampler', default='default')
    parser.add_argument('--save', default='epoch')
    parser.add_argument('--interval', type=int, default=1)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--persistent', action='store_true')
    parser.add_argument('--accumulate', type=int, default=1)
    parser.add_argument('--seed', type=int)
    parser.add_argument('--best', action='store_true')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--kill-after', type=int, default=-1)
    parser.add_argument('--kill-in-save', type=int, default=0)
    parser.add_argument('--launcher', default='none')
    return parser.parse_args(argv)


def main(argv=None):
    # most of a tiny run's time otherwise: formatting the config for each checkpoint, asking compilers for versions
    Config.pretty_text = property(lambda self: 'toy')
    runner_module.collect_env = dict
    options = arguments(argv)
    if options.kill_in_save:
        kill_in_save(options.kill_in_save)
    Runner.from_cfg(Config(config(options))).train()


def serve():
    """Run one command line of standard input after the other in a process of its own, so that imports are paid once."""
    import sys
    import traceback

    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo  # noqa: F401

    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(command['log'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ.update(command['environment'])
            code = 1
            try:
                main(command['argv'])
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == '__main__':
    torch.set_num_threads(1)
    if os.environ.get('TOY_SERVE'):
        serve()
    else:
        main()
