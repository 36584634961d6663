"""Packaging of eff_plugins.

mmengine and mmcv are no hard requirements: the official packages and their maintained forks share the import names, so a
requirement on one distribution's name would install it over the other. ``import eff_plugins`` says what is missing.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# mmengine 0.10 imports pkg_resources, which setuptools 82 dropped; the frameworks' compiled parts want numpy 1.
ENGINE = ['mmengine>=0.10.4,<0.11', 'setuptools<82', 'numpy<2', 'safetensors']
DET = [*ENGINE, 'mmdet>=3.3,<3.4']
SEG = [*ENGINE, 'mmsegmentation>=1.2.2,<1.3', 'ftfy', 'regex']
ACTION = [*ENGINE, 'mmaction2>=1.2,<1.3', 'importlib_metadata']
DET3D = [*DET, *SEG, 'mmdet3d>=1.4,<1.5']
DATA = ['scikit-learn', 'pillow', 'opencv-python-headless', 'tqdm']
TIMM = ['timm>=1.0,<1.1', 'torchvision']
ONNX = ['onnx', 'onnxscript', 'onnxruntime']
EXTRAS = {'engine': ENGINE, 'det': DET, 'seg': SEG, 'action': ACTION, 'det3d': DET3D, 'data': DATA}
EXTRAS |= {'timm': TIMM, 'onnx': ONNX}
EXTRAS['all'] = sorted({requirement for group in EXTRAS.values() for requirement in group})


def version() -> str:
    text = (ROOT / 'eff_plugins' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


readme = ROOT / 'README.md'
setup(
    name='eff_plugins',
    version=version(),
    description='Computation-efficient vision plug-ins for the OpenMMLab frameworks',
    long_description=readme.read_text() if readme.is_file() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='computer vision, efficient networks, OpenMMLab, mmdetection, mmsegmentation, mmaction2, mmdetection3d',
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['eff_plugins', 'eff_plugins.*']),
    # .mim holds links into the repository; the wheel gets the files themselves, where mmengine looks for them.
    package_data={
        'eff_plugins': [
            '.mim/model-index.yml',
            '.mim/configs/**/*',
            '.mim/tools/**/*',
            '**/*.json',
            '**/*.yml',
            '**/*.cpp',
            '**/*.h',
        ]
    },
    exclude_package_data={'eff_plugins': ['**/__pycache__/*', '**/*.pyc']},
    # numpy 1.26, which the frameworks need, has no wheel for Python 3.13
    python_requires='>=3.10,<3.13',
    install_requires=['torch>=2.6', 'numpy'],
    extras_require=EXTRAS,
    zip_safe=False,
)
