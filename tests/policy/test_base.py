"""What policies share, where no algorithm's tests see it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of an update; without keep_freed_memory 2000 to 3000.
SCRIPT = """
import resource
import torch
from ding_ebm.model.networks import ResidualMLP
from ding_ebm.policy.base import keep_freed_memory

network, x = ResidualMLP(39, (512, 512, 512), 12), torch.randn(2048, 39)

def update():
    network.zero_grad()
    network(x).square().mean().backward()

keep_freed_memory()
for _ in range(5):
    update()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    update()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide otherwise")
def test_what_an_update_frees_is_kept_for_the_next():
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000
