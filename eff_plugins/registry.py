"""Child registries with ``scope='eff_plugins'`` and the table of what they hold.

``type='eff_plugins.X'`` works from every OpenMMLab registry without ``custom_imports``: mmengine imports
``eff_plugins.registry`` by itself when it meets the scope. Nothing else is imported then. ``TYPES`` says which module
defines which type; only the module asked for is imported, so a type that subclasses, say, a class of mmdet is found
where mmdet is installed and raises :class:`eff_plugins.compat.MissingExtraError` where it is not, while all other types
keep working.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mmengine import registry as root
from mmengine.registry import Registry

# registry name -> type -> module that defines it (relative to this package)
TYPES: dict[str, dict[str, str]] = {
    'model': {
        'AuxClsHead': '.models.aux_classifier',
        'AuxImageClassifier': '.models.aux_classifier',
        'DRNet': '.models.resolution.drnet',
        'EarlyExitClassifier': '.models.resolution.ranet',
        'GoogLeNet': '.models.image.googlenet',
        'InvertedResidualNet': '.models.image.inverted_residual',
        'ShuffleNetV1': '.models.image.shufflenet',
        'ShuffleNetV2': '.models.image.shufflenet',
        'ImageClassifier': '.models.classifiers',
        'LinearClsHead': '.models.classifiers',
        'LayerSkip': '.models.spatial.layer_skip',
        'CifarResNet': '.models.image.cifar_resnet',
        'DynConv': '.models.spatial.dynconv',
        'LASNet': '.models.spatial.lasnet',
        'SBNet': '.models.spatial.sbnet',
        'SegBlocks': '.models.spatial.segblocks',
        'LCCL': '.models.spatial.lccl',
        'SACT': '.models.spatial.sact',
        'SFSI': '.models.spatial.sfsi',
        'ResNet': '.models.image.resnet',
        'RANet': '.models.resolution.ranet',
        'RegNet': '.models.image.regnet',
        'ScaleAwareDetector': '.models.resolution.safd',
        'ResNeXt': '.models.image.resnext',
        'TimmBackbone': '.models.image.timm_backbone',
        'SplitTransformMerge': '.models.layers.split_transform_merge',
        'LRASPPHead': '.models.decoders.lraspp',
        'TemporalShift': '.models.video.temporal_shift',
    },
    'dataset': {
        'ArrayImageDataset': '.datasets.classification',
        'FolderImageDataset': '.datasets.classification',
        'DigitDetDataset': '.datasets.digits_mmdet',
        'SegFolderDataset': '.datasets.seg_folder',
        'CocoDataset': '.datasets.coco',
        'DigitSegDataset': '.datasets.digits_mmseg',
        'DigitClsDataset': '.datasets.classification',
        'DigitMotionDataset': '.datasets.digits_mmaction',
        'RawKittiDataset': '.datasets.kitti_raw',
    },
    'transform': {
        'LoadImage': '.datasets.transforms',
        'LoadClip': '.datasets.digits_mmaction',
        'LoadPicture': '.datasets.loading',
        'OpenVideo': '.datasets.video',
        'FrameDifference': '.datasets.video',
        'ResizeShortSide': '.datasets.transforms',
        'CenterCrop': '.datasets.transforms',
        'PadCrop': '.datasets.transforms',
        'RandomAreaCrop': '.datasets.transforms',
        'FlipImage': '.datasets.transforms',
        'PackClsInputs': '.datasets.transforms',
        'PointsInCameraView': '.datasets.kitti_raw',
    },
    'metric': {
        'Accuracy': '.evaluation.accuracy',
        'KittiAP': '.evaluation.kitti',
    },
    'hook': {
        'AtomicCheckpointHook': '.engine.checkpoint',
        'BudgetHook': '.engine.budget',
        'DistillationHook': '.engine.distill',
        'ClassCountHook': '.engine.class_count',
        'ChannelsLastHook': '.engine.channels_last',
        'ReinforceHook': '.engine.reinforce',
        'ResumeStateHook': '.engine.resume',
        'FiniteLossHook': '.engine.finite_loss',
        'ClsVisualizationHook': '.visualization.classification',
        'ClipVisualizationHook': '.visualization.classification',
        'ImageVisualizationHook': '.visualization.hooks',
        'BevVisualizationHook': '.visualization.bev',
    },
    'optim_wrapper': {
        'CpuAmpOptimWrapper': '.engine.amp',
    },
    'visualizer': {
        'ClsVisualizer': '.visualization.classification',
    },
}


class LazyRegistry(Registry):
    """A registry that imports the module of a type, as listed in ``TYPES``, when the type is first asked for."""

    def get(self, key: str) -> Any:
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope) and name not in self._module_dict:
            module = TYPES.get(self.name, {}).get(name)
            if module is not None:
                import_module(module, __package__)
        return super().get(key)


def _child(parent: Registry) -> LazyRegistry:
    return LazyRegistry(parent.name, parent=parent, scope='eff_plugins', locations=[__name__])


MODELS = _child(root.MODELS)
DATASETS = _child(root.DATASETS)
TRANSFORMS = _child(root.TRANSFORMS)
METRICS = _child(root.METRICS)
HOOKS = _child(root.HOOKS)
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS)
VISUALIZERS = _child(root.VISUALIZERS)
