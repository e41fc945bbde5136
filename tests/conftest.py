"""What every test gets: one thread for torch, Hypothesis without deadlines, and GPU tests skipped without a GPU."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Set before anything imports torch: several processes with two threads each on two cores wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# No deadline: a busy machine must not fail a correct test.
settings.register_profile("crowdsurf", deadline=None, print_blob=True)
settings.load_profile("crowdsurf")

# Conformance suites hold assertions but are no test files themselves.
pytest.register_assert_rewrite("tests.dht.conformance", "tests.peer.transport.conformance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests with real sockets and processes one after the other, in whichever process: beside each other they would
    starve. Skip `gpu` tests where there is no CUDA device; torch is imported only when such a test was collected."""
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.xdist_group("network"))
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
