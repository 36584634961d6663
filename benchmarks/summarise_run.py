"""Condense a training run into one small json: metrics, command, wall time and the loss epoch by epoch.

python benchmarks/summarise_run.py WORK_DIR METRICS_JSON --command 'python ...' --out RESULT_JSON
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from eff_plugins.engine.runs import write_json


def epochs_of(work_dir: Path) -> list[dict]:
    """Mean of each training scalar per epoch, from mmengine's scalars.json of all (also resumed) runs in the folder."""
    rows: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for key, value in record.items():
                if key == 'loss' or key.startswith('loss_') or key == 'time':
                    rows[int(record.get('epoch', 0))][key].append(value)
    return [
        {'epoch': epoch, **{key: round(sum(v) / len(v), 4) for key, v in scalars.items()}}
        for epoch, scalars in sorted(rows.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('metrics', type=Path)
    parser.add_argument('--command', required=True)
    parser.add_argument('--note', default='')
    parser.add_argument('--out', required=True)
    args = parser.parse_args()
    metrics = json.loads(args.metrics.read_text())
    log = epochs_of(args.work_dir)
    write_json(args.out, {'command': args.command, 'note': args.note, 'metrics': metrics, 'epochs': log})


if __name__ == '__main__':
    main()
