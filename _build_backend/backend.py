"""The build backend: setuptools, asking for torch only where none is installed.

A static `torch` in `build-system.requires` would make pip download a second torch of several gigabytes, possibly of
another kind (CUDA on a CPU machine), although the libraries are built against a stable ABI and serve every torch.
"""

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (every hook that is not replaced below)

from find_torch import find_torch


def _torch_if_absent() -> list[str]:
    return [] if find_torch() else ["torch>=2.10"]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _torch_if_absent()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _torch_if_absent()
