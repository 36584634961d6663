"""Writes a few synthetic frames in KITTI's raw layout."""

from pathlib import Path

import numpy as np

P2 = '700 0 600 45 0 700 180 -0.3 0 0 1 0.005'
ROTATION = '1 0 0 0 1 0 0 0 1'
VELO = '0 -1 0 0.02 0 0 -1 -0.06 1 0 0 -0.3'
CAR = 'Car 0.10 1 -1.57 550.0 150.0 650.0 210.0 1.5 1.6 4.0 1.0 1.7 20.0 -1.5'
DONT_CARE = 'DontCare -1 -1 -10 500 170 590 190 -1 -1 -1 -1000 -1000 -1000 -10'
MISC = 'Misc 0.00 0 -1.82 804.79 167.34 995.43 327.94 1.63 1.48 2.37 3.23 1.59 8.55 -1.47'
FLAT = 'Car 0.00 0 0 550.0 150.0 650.0 210.0 0 1.6 4.0 1.0 1.7 20.0 0'
FRAMES = {'000000': [CAR, DONT_CARE], '000003': [CAR, MISC, FLAT], '000007': []}


def write_kitti(root: Path) -> Path:
    """Three frames of 500 points below ``root/training``: a car; a car beside a misc and a flat one; nothing. No pictures."""
    rng = np.random.default_rng(0)
    for folder in ('velodyne', 'calib', 'label_2', 'image_2'):
        (root / 'training' / folder).mkdir(parents=True)
    for frame, lines in FRAMES.items():
        points = np.column_stack([rng.uniform(-50, 50, (500, 2)), rng.uniform(-2, 1, 500), rng.random(500)])
        points.astype(np.float32).tofile(root / f'training/velodyne/{frame}.bin')
        (root / f'training/calib/{frame}.txt').write_text(
            f'P0: {P2}\nP2: {P2}\nR0_rect: {ROTATION}\nTr_velo_to_cam: {VELO}\n\n'
        )
        (root / f'training/label_2/{frame}.txt').write_text('\n'.join(lines) + '\n')
    return root
