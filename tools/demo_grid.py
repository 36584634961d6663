"""Draw a detector's or segmentor's results on the first pictures of its test set, tiled into one picture."""

import argparse
import tempfile
from pathlib import Path

import eff_plugins  # noqa: F401  (first: its fixes must be in place before a framework is imported)
from eff_plugins.engine.infer import Inferencer, grid
from eff_plugins.engine.runs import check_checkpoint, friendly, load_config
from eff_plugins.visualization.pictures import write_picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--out', required=True, metavar='PNG')
    parser.add_argument('--count', type=int, default=12)
    args = parser.parse_args()
    check_checkpoint(args.checkpoint)
    cfg = load_config(args.config)
    import cv2
    from mmengine.registry import DATASETS

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    paths = [dataset.get_data_info(i)['img_path'] for i in range(min(args.count, len(dataset)))]
    run = Inferencer(cfg, args.checkpoint)
    pictures = []
    with tempfile.TemporaryDirectory() as tmp:
        for path in paths:
            run.draw(path, run(path), Path(tmp) / 'drawn.png')
            drawn = cv2.imread(str(Path(tmp) / 'drawn.png'))
            pictures.append(cv2.resize(drawn, pictures[0].shape[1::-1]) if pictures else drawn)
    write_picture(args.out, grid(pictures, columns=min(4, len(pictures)))[..., ::-1])
    print(f'{len(pictures)} pictures -> {args.out}')


if __name__ == '__main__':
    friendly(main)
