import numpy as np
import pytest
import torch
from mmengine.structures import BaseDataElement

from eff_plugins.registry import MODELS

STAGES = [dict(channels=8, expand=1), dict(channels=12, repeats=2, stride=2, expand=2)]


def build(**kwargs):
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='InvertedResidualNet', arch=dict(stages=STAGES, stem_channels=8), out_indices=(1,)),
            head=dict(type='LinearClsHead', in_channels=12, num_classes=5, hidden_channels=16),
            data_preprocessor=dict(type='ImgDataPreprocessor', mean=[127.0] * 3, std=[128.0] * 3),
            **kwargs,
        )
    )


def test_three_modes_and_gradients():
    model = build()
    data = {
        'inputs': [torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8) for _ in range(2)],
        'data_samples': [BaseDataElement(gt_label=i) for i in (0, 4)],
    }
    batch = model.data_preprocessor(data, True)
    loss = model(**batch, mode='loss')['loss']
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    logits = model(batch['inputs'])
    samples = model(**batch, mode='predict')
    torch.testing.assert_close(samples[1].pred_scores, logits[1].softmax(0))
    with pytest.raises(ValueError, match='mode='):
        model(**batch, mode='other')


def test_predict_takes_any_mix_of_sizes_and_restores_the_mode():
    model = build(eval_size=(24, 16)).train()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((16, 40), (50, 17), (24, 24))]
    together = model.predict(images, batch_size=2)
    assert model.training and together.shape == (3, 5)
    np.testing.assert_allclose(together[1:2], model.predict(images[1:2]), atol=1e-6)
    assert model.predict([]).shape == (0, 5)


@pytest.mark.parametrize('image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_predict_names_a_bad_array(image):
    with pytest.raises(ValueError, match=r'images\[1\]'):
        build(eval_size=(24, 16)).predict([np.zeros((9, 9, 3), np.uint8), image])


def test_labels_outside_the_classes_are_named():
    head = build().head
    with pytest.raises(ValueError, match=r'labels run from 0 to 7.*num_classes=5'):
        head.loss(torch.zeros(2, 5), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match='at least 2 classes'):
        MODELS.build(dict(type='LinearClsHead', in_channels=3, num_classes=1))
