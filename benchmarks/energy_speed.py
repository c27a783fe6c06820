"""Speed of energies of all pairs of a batch, in one run: ``python benchmarks/energy_speed.py``.

Each line times the reference and ours in turn, round by round, in CPU time of one thread; the ratio is the median over
rounds of reference over ours. ``alone`` is forward, backward and optimizer of the network on a batch at hand, beside an
update of ``energy_model`` with its batch from a data set of a million transitions. ``rows`` evaluates a network on
repeated contexts and actions, ``plain`` is the plain MLP of the same layers on them, ``products`` are the matrix
products of the hidden layers alone.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from ding.utils import deep_merge_dicts
from dppo_reference import endless
from easydict import EasyDict
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ding_ebm.data.chunks import ChunkDataset
from ding_ebm.data.formats import Transitions
from ding_ebm.energy.losses import info_nce
from ding_ebm.model.energy_model import EnergyMLP, EnergyModel
from ding_ebm.model.linear import linear
from ding_ebm.model.networks import mlp
from ding_ebm.policy.energy_model import EnergyModelPolicy

OBS, ACTION, STEPS = 11, 3, 4
Work = Callable[[], Any]


def compare(name: str, reference: Work, ours: Work, rounds: int) -> None:
    """Print the seconds of both and their ratio."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for work, times in zip((reference, ours), seconds):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
    ratio = statistics.median(a / b for a, b in list(zip(*seconds))[1:])
    print(f"{name:60s} {min(seconds[0]):8.3f} s {min(seconds[1]):8.3f} s {ratio:6.2f}", flush=True)


def backward(parameters: nn.Module, loss: Callable[[], Tensor]) -> None:
    """One evaluation of a loss and its gradients."""
    parameters.zero_grad()
    loss().backward()


def small_network(batch: int, rounds: int) -> None:
    """A training step of ``EnergyMLP`` on all pairs of a batch, with its optimizer."""
    net = EnergyMLP(OBS, ACTION, 1, STEPS)
    plain = mlp([OBS + STEPS * ACTION, 256, 256, 256, 1])
    obs, action = torch.randn(batch, 1, OBS), torch.randn(batch, STEPS, ACTION)
    contexts, chunks = obs.repeat_interleave(batch, dim=0), action.repeat(batch, 1, 1)
    inputs = torch.cat([contexts.flatten(1), chunks.flatten(1)], dim=1)
    hidden, weight = torch.randn(4096, 256), torch.randn(256, 256)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        backward(net, lambda: info_nce(net.pair_energy(obs, action)))
        optimizer.step()

    @torch.no_grad()
    def products() -> None:
        for _ in range(2 * batch**2 // len(hidden)):
            linear(hidden, weight), linear(hidden, weight.t()), linear(hidden.t().contiguous(), hidden.t().contiguous())

    compare(f"EnergyMLP, B = {batch}: plain, step", lambda: backward(plain, lambda: plain(inputs).sum()), step, rounds)
    compare(
        f"EnergyMLP, B = {batch}: rows, step", lambda: backward(net, lambda: net(contexts, chunks).sum()), step, rounds
    )
    compare(f"EnergyMLP, B = {batch}: products, step", products, step, rounds)


def whole_update(batch: int, rows: int, rounds: int) -> None:
    """An update by the policy, its batch included."""
    rng = np.random.default_rng(0)
    obs, action = (rng.uniform(-1, 1, (rows, size)).astype(np.float32) for size in (OBS, ACTION))
    ends = np.arange(1, rows + 1) % 1000 == 0
    transitions = Transitions(obs, action, np.zeros(rows, np.float32), obs, np.zeros_like(ends), ends, "random")
    dataset = ChunkDataset(transitions, horizon_steps=STEPS)
    override = dict(model=dict(task="hopper", obs_dim=OBS, action_dim=ACTION), learn=dict(batch_size=batch))
    cfg = deep_merge_dicts(EnergyModelPolicy.default_config(), EasyDict(override))
    policy = EnergyModelPolicy(cfg, enable_field=["learn"])
    batches = endless(partial(DataLoader, dataset, batch, shuffle=True, collate_fn=lambda x: x))
    net, data = EnergyMLP(OBS, ACTION, 1, STEPS), next(batches)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def alone() -> None:
        backward(net, lambda: info_nce(net.pair_energy(data["obs"], data["action"])))
        optimizer.step()

    repeat = max(1, 256**2 // batch**2)

    def several(work: Work) -> Work:
        return lambda: [work() for _ in range(repeat)]

    name = f"energy_model, B = {batch}, {rows} transitions: alone, update"
    compare(name, several(alone), several(lambda: policy._forward_learn(next(batches))), rounds)


def attention(batch: int, tokens: int, gradients: bool, rounds: int) -> None:
    """``EnergyModel`` on all pairs of a batch."""
    net = EnergyModel(64, 7)
    obs, action = torch.randn(batch, tokens, 64), torch.randn(batch, STEPS, 7)
    name = f"EnergyModel, B = {batch}, S = {tokens}, {'with' if gradients else 'without'} gradients: rows, pairs"

    def rows() -> Tensor:
        return net(obs.repeat_interleave(batch, dim=0), action.repeat(batch, 1, 1)).view(batch, batch)

    if gradients:
        compare(
            name,
            lambda: backward(net, lambda: info_nce(rows())),
            lambda: backward(net, lambda: info_nce(net.pair_energy(obs, action))),
            rounds,
        )
    else:
        with torch.no_grad():
            compare(name, rows, lambda: net.pair_energy(obs, action), rounds)


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{'':60s} {'reference':>10s} {'ours':>10s}  ratio")
    for batch in (64, 256):
        whole_update(batch, 1_000_000, rounds)
    small_network(256, rounds)
    attention(16, 64, False, rounds)
    attention(16, 64, True, rounds)
    attention(256, 4, False, rounds)


if __name__ == "__main__":
    main()
