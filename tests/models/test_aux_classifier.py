import pytest
import torch
from mmengine.structures import BaseDataElement

from eff_plugins.models.aux_classifier import AuxClsHead, AuxImageClassifier
from eff_plugins.testing.oracles import randomise
from tests.conftest import oracle

HEADS = {
    f'stages.2.{block}': dict(type='AuxClsHead', in_channels=channels, num_classes=5, hidden_channels=16)
    for block, channels in ((1, 512), (4, 528))
}


def classifier(aux_heads=HEADS, **backbone):
    torch.manual_seed(0)
    return AuxImageClassifier(
        dict(type='GoogLeNet', out_indices=(4,), **backbone),
        dict(type='LinearClsHead', in_channels=1024, num_classes=5),
        aux_heads,
    )


@torch.no_grad()
def test_the_head_is_torchvisions():
    oracle('torchvision')
    from torchvision.models.googlenet import InceptionAux

    theirs, ours = InceptionAux(12, 7).eval(), AuxClsHead(12, 7, norm_cfg=dict(type='BN', eps=1e-3)).eval()
    randomise(theirs)
    names = {'bn': 'norm'}
    ours.load_state_dict(
        {
            '.'.join(names.get(part, part) for part in key.split('.')): value
            for key, value in theirs.state_dict().items()
        }
    )
    x = torch.randn(2, 12, 14, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('with_cp', [False, True])
def test_auxiliary_losses_reach_only_what_lies_before_them(with_cp):
    model = classifier(with_cp=with_cp).train()
    samples = [BaseDataElement(gt_label=label) for label in (1, 3)]
    losses = model(torch.randn(2, 3, 64, 64), samples, mode='loss')
    assert list(losses) == ['loss', 'loss_aux0', 'loss_aux1']
    losses['loss_aux0'].backward(retain_graph=True)
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    before = ('backbone.stem', 'backbone.stages.0.', 'backbone.stages.1.', 'backbone.stages.2.1.', 'aux_heads.0.')
    assert reached == {n for n, _ in model.named_parameters() if n.startswith(before)}
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_they_take_part_in_training_only():
    model = classifier().eval()
    x, samples = torch.randn(2, 3, 64, 64), [BaseDataElement(gt_label=1)] * 2
    plain = super(AuxImageClassifier, model).forward(x)
    assert torch.equal(model(x), plain)
    losses = model(x, samples, mode='loss')
    stages = model.backbone.stages
    first = torch.nn.Sequential(model.backbone.stem, stages[0], stages[1], stages[2][:2])(x)
    want = 0.3 * torch.nn.functional.cross_entropy(model.aux_heads[0](first), torch.tensor([1, 1]))
    torch.testing.assert_close(losses['loss_aux0'], want)
    assert not model.backbone.stages[2][1]._forward_hooks


def test_an_unknown_block_is_named():
    with pytest.raises(ValueError, match="no block 'stages.9'"):
        classifier({'stages.9': HEADS['stages.2.1']})
