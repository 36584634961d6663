"""mmcv's operators give their fp32 results under bf16 autocast and on channels-last tensors, with gradients."""

import pytest
import torch

import eff_plugins  # noqa: F401

ops = pytest.importorskip('mmcv.ops', reason='needs mmcv with operators', exc_type=ImportError)


def run(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*leaves)
    out.float().sum().backward()
    return out, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize('name', ['roi_align', 'deformable convolution'])
def test_same_as_fp32(name):
    torch.manual_seed(0)
    # values that bf16 holds exactly, so that only the arithmetic could differ
    x = torch.randint(-8, 8, (1, 4, 8, 8)).float()
    if name == 'roi_align':
        rois = torch.tensor([[0, 1.0, 1.0, 6.0, 6.0]])

        def function(feature):
            return ops.roi_align(feature, rois.to(feature.dtype), (3, 3), 1.0, 0, 'avg', True)
    else:
        offset, mask = torch.full((1, 18, 8, 8), 0.5), torch.full((1, 9, 8, 8), 0.5)
        weight = torch.randint(-2, 3, (4, 4, 3, 3)).float()

        def function(feature):
            args = (t.to(feature.dtype) for t in (offset, mask, weight))
            return ops.modulated_deform_conv2d(feature, *args, None, 1, 1, 1, 1, 1)

    expected, (gradient,) = run(function, x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out, (low,) = run(function, x.bfloat16())
    torch.testing.assert_close(out, expected)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), gradient, rtol=1e-2, atol=1e-2)


def test_nms_and_unchanged_outside_autocast():
    boxes = torch.tensor([[0, 0, 4, 4], [0, 0, 4, 3.5], [8, 8, 9, 9]])
    scores = torch.tensor([0.5, 0.75, 0.25])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert ops.nms(boxes.bfloat16(), scores.bfloat16(), 0.5)[1].tolist() == [1, 2]
    assert ops.nms(boxes, scores, 0.5)[1].tolist() == [1, 2]
    assert ops.roi_align(torch.ones(1, 1, 4, 4).double(), torch.zeros(1, 5).double(), (1, 1)).dtype == torch.float64


def test_roi_extractor_keeps_the_precision_of_boxes():
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    layer = {'type': 'RoIAlign', 'output_size': 2, 'sampling_ratio': 0}
    extractor = extractors.SingleRoIExtractor(layer, out_channels=1, featmap_strides=[4, 8])
    ramp = torch.arange(128.0).expand(1, 1, 128, 128)
    features = (ramp.contiguous(), ramp[..., :64, :64].contiguous())
    rois = torch.tensor([[0, 401.0, 401.0, 431.0, 431.0], [0, 3.0, 3.0, 300.0, 300.0]])
    expected = extractor(features, rois)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = extractor(tuple(f.bfloat16() for f in features), rois)  # the ramp is exact in bf16, the boxes are not
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('name', ['roi_align', 'modulated_deform_conv2d', 'deform_conv2d'])
def test_channels_last_gives_the_same(name):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 8, 8), torch.randn(6, 4, 3, 3)
    offset, mask = torch.rand(2, 18, 8, 8), torch.rand(2, 9, 8, 8)

    def function(feature):
        order = (
            torch.channels_last if feature.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        )
        if name == 'roi_align':
            rois = torch.tensor([[0, 1.0, 1.0, 6.0, 6.0], [1, 2.0, 0.0, 7.0, 5.0]])
            out = ops.roi_align(feature, rois, (3, 3), 1.0, 0, 'avg', True)
        elif name == 'deform_conv2d':
            out = ops.deform_conv2d(feature, offset.to(memory_format=order), weight, 1, 1)
        else:
            extra = offset.to(memory_format=order), mask.to(memory_format=order)
            out = ops.modulated_deform_conv2d(feature, *extra, weight, None, 1, 1, 1, 1, 1)
        return (out * torch.arange(out.numel()).view_as(out)).to(memory_format=order)

    expected, (gradient,) = run(function, x)
    out, (other,) = run(function, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(other, gradient)
