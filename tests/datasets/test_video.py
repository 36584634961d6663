import numpy as np
import pytest

pytest.importorskip('mmaction')

from eff_plugins.registry import TRANSFORMS

cv2 = pytest.importorskip('cv2')


@pytest.fixture
def video(tmp_path):
    path = tmp_path / 'clip.mp4'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 10, (64, 48))
    for i in range(6):
        writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
    writer.release()
    return path


def open_video(path):
    return TRANSFORMS.build(dict(type='eff_plugins.OpenVideo'))({'filename': str(path)})


def test_opens_and_decodes(video):
    results = open_video(video)
    assert results['total_frames'] == 6
    decode = TRANSFORMS.build(dict(type='mmaction.OpenCVDecode'))
    frames = decode({**results, 'frame_inds': np.array([0, 3, 5])})['imgs']
    # the check of the first frame must not move the position that later reads start from
    np.testing.assert_allclose([frame.mean() for frame in frames], [0, 120, 200], atol=8)


def test_a_damaged_video_is_named(tmp_path, video):
    damaged = tmp_path / 'damaged.mp4'
    damaged.write_bytes(b'no video' * 100)
    with pytest.raises(ValueError, match=r'damaged\.mp4: this video does not decode'):
        open_video(damaged)
    # the header is whole (frame count and size), the frames are not there
    content = video.read_bytes()
    start = content.index(b'mdat') + 4
    end = content.index(b'moov') - 4
    damaged.write_bytes(content[:start] + bytes(end - start) + content[end:])
    with pytest.raises(ValueError, match=r'damaged\.mp4: this video does not decode'):
        open_video(damaged)


def test_a_missing_video_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'absent\.mp4'):
        open_video(tmp_path / 'absent.mp4')


def test_frame_difference():
    first = np.full((2, 4, 6, 3), 100, np.uint8)
    second = np.stack([np.full((4, 6, 3), 110, np.uint8), np.full((4, 6, 3), 0, np.uint8)])
    frames = [first[0], second[0], first[1], second[1]]
    transform = TRANSFORMS.build(dict(type='eff_plugins.FrameDifference', gain=1.5))
    results = transform({'imgs': frames, 'clip_len': 2})
    assert [image.dtype for image in results['imgs']] == [np.uint8] * 2
    assert [int(image.mean()) for image in results['imgs']] == [142, 0]  # 127 + 15; 127 - 150 is limited to 0
    assert results['clip_len'] == 1


def test_frame_difference_needs_pairs():
    with pytest.raises(ValueError, match='clip_len=2, not clip_len=1'):
        TRANSFORMS.build(dict(type='eff_plugins.FrameDifference'))({'imgs': [], 'clip_len': 1})
