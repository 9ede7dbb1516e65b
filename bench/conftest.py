"""Benchmarks run on what the machine has; every number is printed with its hardware."""

import platform

import pytest
import torch

from eco_fast.utils.device import device_name, pick_device


@pytest.fixture(scope="session")
def device() -> str:
    """A GPU where there is one."""
    return pick_device("auto")


def pytest_report_header() -> str:
    """The conditions of every number below."""
    return (
        f"hardware: {device_name(pick_device('auto'))}; torch {torch.__version__}; python {platform.python_version()}"
    )
