import pytest

from eff_plugins.engine import runs
from tests.test_import import run


@pytest.mark.parametrize(
    ('config', 'host', 'extra'),
    [
        ('retinanet/retinanet_effnet-lite0_bccd.py', 'mmdet', 'det'),
        ('segformer_head/segformer-head_effnet-lite0_camvid.py', 'mmseg', 'seg'),
    ],
)
def test_a_missing_framework_is_named_with_its_extra(config, host, extra):
    result = run(f"from eff_plugins.engine.runs import load_config; load_config('eff_plugins::{config}')", (host,))
    last = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1 and f'needs {host}' in last and f'eff_plugins[{extra}]' in last


def test_a_foreign_config_gets_the_hooks_that_the_tools_promise(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        "default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=7))\ncustom_hooks = [dict(type='X')]\n"
    )
    cfg = runs.load_config(str(path))
    assert cfg.default_hooks.checkpoint == dict(type='eff_plugins.AtomicCheckpointHook', interval=7)
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'X',
        'eff_plugins.ResumeStateHook',
        'eff_plugins.FiniteLossHook',
        'eff_plugins.ClassCountHook',
    ]


def test_a_message_from_a_loader_worker_is_its_last_line(capsys):
    def main():
        raise ValueError(
            'Caught ValueError in DataLoader worker process 0.\nTraceback\n  x\nValueError: bad.jpg is damaged\n'
        )

    with pytest.raises(SystemExit):
        runs.friendly(main)
    assert capsys.readouterr().err.startswith('error: ValueError: bad.jpg is damaged\n')
