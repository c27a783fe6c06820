"""The energy networks: pairs against one evaluation each, what the published network cannot see and ours can.

Letters: B batch, N actions, M candidates, S context tokens, Tp predicted actions, Do observation, Da action.
"""

from __future__ import annotations

import math
import re
import time
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ding_ebm.energy.losses import info_nce
from ding_ebm.model.energy_model import EnergyMLP, EnergyModel, FactorizedEnergy
from ding_ebm.model.energy_protocol import _BLOCK_ROWS as BLOCK_ROWS

DO, DA, S, TP = 5, 3, 4, 6


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attention(obs_dim: int = DO, action_dim: int = DA, **arguments) -> EnergyModel:
    torch.manual_seed(0)
    return EnergyModel(obs_dim, action_dim, **{"hidden": 32, "heads": 4, **arguments})


def mlp(**arguments) -> EnergyMLP:
    torch.manual_seed(0)
    return EnergyMLP(DO, DA, S, TP, hidden=(32, 32), **arguments)


def published(obs_dim: int = DO, action_dim: int = DA, **arguments) -> EnergyModel:
    with pytest.warns(UserWarning, match="compat='vel'"):
        return attention(obs_dim, action_dim, compat="vel", **arguments)


def input_gradient(net: nn.Module, obs: Tensor, action: Tensor) -> Tensor:
    action = action.clone().requires_grad_()
    return torch.autograd.grad(net(obs, action).sum(), action)[0]


NETWORKS = {
    "attention": attention,
    "attention with all options": lambda: attention(
        self_attention=True, bound="softplus", pool=("discount", 0.8), num_steps=10, norm_obs=True
    ),
    "published": published,
    "mlp": mlp,
    "mlp of a step": lambda: mlp(num_steps=10, activation="mish"),
}


# Pairs and candidates.


def repeated(net: FactorizedEnergy, obs: Tensor, action: Tensor, k: Tensor | None = None) -> Tensor:
    """Every pair by an evaluation of its own row, (B, N)."""
    num, of_pairs = len(action), None if k is None else k.repeat(len(obs))
    pairs = net(obs.repeat_interleave(num, dim=0), action.repeat(len(obs), 1, 1), of_pairs)
    return pairs.view(len(obs), num)


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_have_the_energies_and_gradients_of_their_rows(name, monkeypatch):
    net = NETWORKS[name]()
    obs, action = random(7, S, DO).requires_grad_(), random(9, TP, DA, seed=2).requires_grad_()
    k = torch.arange(9) if net.num_steps else None
    found = []
    for evaluate, block in ((net.pair_energy, 40), (net.pair_energy, 4096), (lambda *x: repeated(net, *x), 4096)):
        monkeypatch.setitem(BLOCK_ROWS, "cpu", block)
        pairs = evaluate(obs, action, k)
        weights = random(7, 9, seed=3)
        found.append((pairs, *torch.autograd.grad((pairs * weights).sum(), [obs, action, *net.parameters()])))
    assert found[0][0].shape == (7, 9) and found[0][0].std() > 1e-4
    for ours in found[:2]:
        for pair, row in zip(ours, found[2]):
            torch.testing.assert_close(pair, row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_candidates_have_the_energies_of_their_rows(name):
    net = NETWORKS[name]()
    obs, action = random(5, S, DO), random(5, 8, TP, DA, seed=2)
    k = torch.arange(40).view(5, 8) % 11 if net.num_steps else None
    found = net.candidate_energy(obs, action, k)
    for m in range(8):
        alone = net(obs, action[:, m], None if k is None else k[:, m])
        torch.testing.assert_close(found[:, m], alone, rtol=0.0, atol=1e-5)
    if k is not None:
        one_a_row = net.candidate_energy(obs, action, k[:, 3])
        torch.testing.assert_close(one_a_row[:, 3], found[:, 3], rtol=0.0, atol=1e-5)
        assert (one_a_row - found).abs().max() > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_the_precision_is_that_of_the_parameters(name):
    net = NETWORKS[name]()
    single = net.pair_energy(random(4, S, DO), random(4, TP, DA, seed=2))
    double = net.double().pair_energy(random(4, S, DO).double(), random(4, TP, DA, seed=2).double())
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_under_autocast_the_energy_is_of_the_parameters_precision(name):
    net, obs, action = NETWORKS[name](), random(8, S, DO), random(9, TP, DA, seed=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net.pair_energy(obs, action)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, net.pair_energy(obs, action), rtol=0.0, atol=0.03)


class LargestTensor(TorchDispatchMode):
    """Remembers how large the results of operations get, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_pairs_hold_no_copy_of_the_contexts_and_are_twice_as_fast_as_rows():
    net = attention(64, 7, hidden=128)
    obs, action = random(16, 64, 64), random(16, 4, 7, seed=2)
    seconds, sizes = [], []
    for evaluate in (lambda: net.pair_energy(obs, action), lambda: repeated(net, obs, action)):
        best = math.inf
        with torch.no_grad():
            with LargestTensor() as largest:
                evaluate()
            for _ in range(3):
                start = time.process_time()
                evaluate()
                best = min(best, time.process_time() - start)
        seconds.append(best)
        sizes.append(largest.numel)
    copy = 16 * 16 * 64 * 64
    assert sizes[0] < copy / 2 and sizes[1] >= copy
    assert 2.0 * seconds[0] < seconds[1]  # 4.4 to 8.9 times


# What the published network cannot see.


@pytest.mark.parametrize(("make", "sees"), [(attention, True), (mlp, True), (published, False)])
def test_with_one_context_token_the_energy_depends_on_the_action(make, sees):
    net = make()
    tokens = 1 if isinstance(net, EnergyModel) else S
    grad = input_gradient(net, random(8, tokens, DO), random(8, TP, DA, seed=2)).flatten(1).norm(dim=1)
    assert (grad > 1e-3).all() if sees else not grad.any()


@pytest.mark.parametrize(("make", "sees"), [(attention, True), (mlp, True), (published, False)])
def test_the_energy_depends_on_amplitude_and_mean_of_an_action(make, sees):
    net, obs, action = make(), random(8, S, DO), random(8, TP, DA, seed=2)
    change = (net(obs, 1.5 * action + 0.2) - net(obs, action)).abs()
    assert change.median() > 1e-3 if sees else change.max() < 1e-5


@pytest.mark.parametrize(("make", "sees"), [(attention, True), (mlp, True), (published, False)])
def test_the_energy_depends_on_the_order_of_observations(make, sees):
    net, obs, action = make(), random(8, S, DO), random(8, TP, DA, seed=2)
    change = (net(obs.flip(1), action) - net(obs, action)).abs()
    assert change.median() > 1e-4 if sees else change.max() < 1e-6


def loss_on_one_dimension(net: nn.Module, iterations: int = 150) -> float:
    """Contrastive loss of a = s + 0.3 eps after training, 64 pairs a batch; I(s; a) is 1.25 nats."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    losses = []
    for _ in range(iterations):
        obs = torch.randn(64, 1, 1, generator=generator)
        loss = info_nce(net.pair_energy(obs, obs + 0.3 * torch.randn(64, 1, 1, generator=generator)), kind="row")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


def test_actions_of_one_dimension_are_learned():
    assert loss_on_one_dimension(attention(1, 1)) < math.log(64) - 0.5


def test_the_published_network_does_not_learn_actions_of_one_dimension():
    assert loss_on_one_dimension(published(1, 1), iterations=20) == pytest.approx(math.log(64), abs=1e-4)


def test_a_bounded_energy_learns_down_to_its_floor_and_not_below():
    net = attention(8, 8, bound=(0.1, 2.1))
    obs, action = 3.0 * torch.eye(8).unsqueeze(1), 3.0 * torch.eye(8).flip(0).unsqueeze(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, fused=True)
    floor = math.log1p(7.0 * math.exp(-2.0 / 0.5))
    for _ in range(60):
        loss = info_nce(net.pair_energy(obs, action))
        assert loss.item() >= floor - 1e-6
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < floor + 0.05


# Steps of a chunk.


@pytest.mark.parametrize("make", [attention, mlp])
def test_the_energy_depends_on_the_order_of_actions(make):
    net, obs, action = make(), random(8, S, DO), random(8, TP, DA, seed=2)
    assert (net(obs, action.flip(1)) - net(obs, action)).abs().median() > 1e-4


@pytest.mark.parametrize(("self_attention", "adds_up"), [(False, True), (True, False)])
def test_only_attention_between_actions_makes_an_energy_that_does_not_add_up_over_steps(self_attention, adds_up):
    net = attention(self_attention=self_attention).double()
    obs, a = random(8, S, DO).double(), random(8, TP, DA, seed=2).double()
    b = random(8, TP, DA, seed=3).double()
    first = torch.arange(TP).view(1, TP, 1) < 3
    cross = net(obs, a) + net(obs, b) - net(obs, torch.where(first, a, b)) - net(obs, torch.where(first, b, a))
    assert cross.abs().max() < 1e-12 if adds_up else cross.abs().median() > 1e-4


def test_a_chunks_energy_is_made_of_its_steps_as_asked():
    nets = {pool: attention(pool=pool) for pool in ("mean", "sum", ("discount", 0.7), ("first", 2), ("first", 1))}
    obs, action = random(8, S, DO), random(8, TP, DA, seed=2)
    total = nets["sum"](obs, action)
    first, second = nets["first", 1](obs, action), 2.0 * nets["first", 2](obs, action) - nets["first", 1](obs, action)
    torch.testing.assert_close(nets["mean"](obs, action), total / TP)
    torch.testing.assert_close(nets["sum"](obs, action[:, :2]), first + second)
    discounted = (first + 0.7 * second) / 1.7
    torch.testing.assert_close(nets["discount", 0.7](obs, action[:, :2]), discounted)
    assert not input_gradient(nets["first", 2], obs, action)[:, 2:].any()


def test_one_action_is_a_chunk_of_one_step():
    net, obs, action = attention(), random(8, S, DO), random(8, DA, seed=2)
    assert torch.equal(net(obs, action), net(obs, action.unsqueeze(1)))
    assert torch.equal(net.pair_energy(obs, action), net.pair_energy(obs, action.unsqueeze(1)))
    several = random(8, 3, DA, seed=3)
    assert torch.equal(net.candidate_energy(obs, several), net.candidate_energy(obs, several.unsqueeze(2)))


@pytest.mark.parametrize(("bound", "low", "high"), [((0.0, 0.5), 0.0, 0.5), ("softplus", 0.0, math.inf)])
def test_a_bounded_energy_stays_in_its_range_and_an_unbounded_one_does_not(bound, low, high):
    obs, action = random(64, S, DO), 30.0 * random(64, TP, DA, seed=2)
    values, free = (attention(bound=b).double()(obs.double(), action.double()) for b in (bound, None))
    assert (values > low).all() and (values < high).all() and values.std() > 1e-3
    assert (free < low).any()


# Masks and denoising steps.


@pytest.mark.parametrize("make", [attention, published])
def test_padded_tokens_do_not_count_and_valid_ones_do(make):
    net, obs, action = make(), random(8, S, DO), random(8, TP, DA, seed=2)
    valid = torch.tensor([True, False, True, False]).expand(8, S)
    changed = random(8, S, DO, seed=3)
    energy = net(obs, action, obs_mask=valid)
    other_padding = net(torch.where(valid.unsqueeze(-1), obs, changed), action, obs_mask=valid)
    assert (other_padding - energy).abs().max() < 1e-6
    other_tokens = net(torch.where(valid.unsqueeze(-1), changed, obs), action, obs_mask=valid)
    assert (other_tokens - energy).abs().min() > 1e-4
    pairs = net.pair_energy(obs, action, obs_mask=valid)
    torch.testing.assert_close(pairs.diagonal(), energy, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize("make", [attention, published])
def test_a_mask_of_valid_tokens_is_no_mask(make):
    net, obs, action = make(), random(8, S, DO), random(8, TP, DA, seed=2)
    masked = net(obs, action, obs_mask=torch.ones(8, S, dtype=torch.bool))
    assert (masked - net(obs, action)).abs().max() < 1e-6


@pytest.mark.parametrize("make", [attention, mlp])
def test_denoising_index_and_time_are_not_interchangeable(make):
    net, action = make(num_steps=10), random(8, TP, DA)
    at = {t: torch.cat([random(8, S, DO - 1, seed=2), torch.full((8, S, 1), float(t))], dim=-1) for t in (3, 5)}
    steps = {k: torch.full((8,), k) for k in (0, 3, 5)}
    assert (net(at[5], action, steps[3]) - net(at[3], action, steps[5])).abs().min() > 1e-4
    assert torch.equal(net(at[5], action), net(at[5], action, steps[0]))


def test_an_energy_of_clean_actions_takes_index_zero_only():
    net, obs, action = mlp(), random(4, S, DO), random(4, TP, DA)
    assert torch.equal(net(obs, action, torch.zeros(4, dtype=torch.int64)), net(obs, action))
    with pytest.raises(ValueError, match=r"0 \.\. 0 \(this energy was made without num_steps\), got 0 \.\. 3"):
        net(obs, action, torch.arange(4))


def test_dropout_acts_while_training_only():
    net, obs, action = attention(dropout=0.5), random(8, S, DO), random(8, TP, DA)
    assert not torch.equal(net(obs, action), net(obs, action))
    net.eval()
    assert torch.equal(net(obs, action), net(obs, action))


# The published network.


class _PublishedMLP(nn.Module):
    """norm, linear, silu, blocks x + silu(linear(norm(x))), norm, linear, by PyTorch's own layers."""

    def __init__(self, blocks: int, dim_in: int, dim: int, dim_out: int) -> None:
        super().__init__()
        self.norm_in, self.linear_in = nn.LayerNorm(dim_in), nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim)) for _ in range(blocks)])
        self.norm_out, self.linear_out = nn.LayerNorm(dim), nn.Linear(dim, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.linear_in(self.norm_in(x)))
        for block in self.blocks:
            x = x + nn.functional.silu(block(x))
        return self.linear_out(self.norm_out(x))


class _Published(nn.Module):
    """The published network written down a second time."""

    def __init__(self, obs_dim: int, action_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.obs, self.action = _PublishedMLP(1, obs_dim, dim, dim), _PublishedMLP(1, action_dim, dim, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.head = _PublishedMLP(2, dim, dim, 1)
        self.dim = dim

    def forward(self, obs: Tensor, action: Tensor, valid: Tensor) -> Tensor:
        position = torch.arange(action.shape[1]).unsqueeze(1)
        angle = position / 10000.0 ** (torch.arange(0, self.dim, 2) / self.dim)
        positions = torch.empty(action.shape[1], self.dim)
        positions[:, 0::2], positions[:, 1::2] = angle.sin(), angle.cos()
        context = self.obs(obs)
        gathered, _ = self.attention(self.action(action) + positions, context, context, key_padding_mask=~valid)
        return (torch.sigmoid(0.5 * self.head(gathered)) * 2.0 + 0.1).mean(dim=1).squeeze(-1)


@torch.no_grad()
def test_compat_is_the_published_network():
    ours, theirs = published(), _Published(DO, DA, 32, 4)
    for encoder in ("obs", "action", "head"):
        for target, source in zip(getattr(theirs, encoder).parameters(), getattr(ours, encoder).parameters()):
            target.copy_(source)
    parts = (ours.attention.query, ours.attention.key, ours.attention.value)
    theirs.attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    theirs.attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    theirs.attention.out_proj.load_state_dict(ours.attention.out.state_dict())
    obs, action = random(8, S, DO), random(8, TP, DA, seed=2)
    valid = torch.tensor([True, True, False, True]).expand(8, S)
    torch.testing.assert_close(ours(obs, action, obs_mask=valid), theirs(obs, action, valid), rtol=0.0, atol=1e-6)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_numbers_of_parameters_that_the_docstrings_state():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vel = EnergyModel(2048, 7, hidden=512, compat="vel")
    assert count(vel) == count(_Published(2048, 7, 512, 8)) == 3_955_215
    for documented, net in ((EnergyModel, vel), (EnergyMLP, EnergyMLP(11, 3, 1, 4))):
        assert f"{count(net):,}".replace(",", " ") + " parameters" in re.sub(r"\s+", " ", documented.__doc__)


# Errors.


def test_compat_cannot_be_changed_in_part():
    with pytest.raises(ValueError, match="leave them out"):
        attention(compat="vel", bound="softplus")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attention(hidden=30), "multiple of the number of heads, got 30 and 4"),
        (lambda: attention(hidden=9, heads=3), "even, got 9"),
        (lambda: attention(bound=(1.0, 1.0)), r"\(low, high\), got \(1.0, 1.0\)"),
        (lambda: attention(bound="sigmoid"), "got 'sigmoid'"),
        (lambda: attention(pool="max"), "pool must be .* got 'max'"),
        (lambda: attention(pool=("first", 0)), r"got \('first', 0\)"),
        (lambda: attention(pool="discount"), r"\('discount', gamma\)"),
        (lambda: attention(num_steps=0), "None or K >= 1, got 0"),
        (lambda: attention(compat="jax"), "None or 'vel', got 'jax'"),
        (lambda: attention(action_dim=0), "positive, got 5 and 0"),
        (lambda: mlp(activation="tanh"), "silu.*got 'tanh'"),
        (lambda: EnergyMLP(DO, DA, 1, 1, hidden=()), r"positive widths, got \(\)"),
    ],
)
def test_what_makes_no_network_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


OBS, ACTION = random(4, S, DO), random(4, TP, DA)
NO_TOKEN = torch.tensor([[True] * S, [False] * S, [True] * S, [True] * S])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net(OBS[:1], ACTION), "same number of rows, got 1 and 4"),
        (lambda net: net(OBS[..., :4], ACTION), r"Do = 5, got \(4, 4, 4\)"),
        (lambda net: net(OBS[:, 0], ACTION), r"Do = 5, got \(4, 5\)"),
        (lambda net: net(OBS, ACTION[..., :2]), r"Da = 3, got \(4, 6, 2\)"),
        (lambda net: net(OBS, ACTION.unsqueeze(0)), "same number of rows"),
        (lambda net: net.candidate_energy(OBS, ACTION[:, 0]), r"\(B, M, Tp, Da\) with Da = 3"),
        (lambda net: net.candidate_energy(OBS[:3], ACTION.unsqueeze(1)), "same number of rows, got 3 and 4"),
        (lambda net: net(OBS, ACTION, torch.arange(3)), "one integer for each action"),
        (lambda net: net(OBS, ACTION, torch.zeros(4)), "one integer for each action, got torch.float32"),
        (lambda net: net(OBS, ACTION, torch.tensor([0, 1, 2, 11])), r"0 \.\. 10, got 0 \.\. 11"),
        (lambda net: net(OBS, ACTION, torch.tensor([0, 1, 2, -1])), r"0 \.\. 10, got -1 \.\. 2"),
    ],
)
@pytest.mark.parametrize("make", [attention, mlp])
def test_inputs_that_do_not_fit_are_refused(make, call, message):
    with pytest.raises(ValueError, match=message):
        call(make(num_steps=10))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (NO_TOKEN, "row 1 has none"),
        (torch.ones(4, S), "True where valid, got torch.float32"),
        (torch.ones(4, S + 1, dtype=torch.bool), r"got torch.bool \(4, 5\)"),
    ],
)
def test_masks_that_hide_all_or_do_not_fit_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        attention()(OBS, ACTION, obs_mask=mask)


def test_what_an_mlp_cannot_read_is_refused():
    with pytest.raises(ValueError, match="takes no obs_mask"):
        mlp()(OBS, ACTION, obs_mask=torch.ones(4, S, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"observation history must be"):
        mlp()(OBS[:, :2], ACTION)
    with pytest.raises(ValueError, match=r"action chunk must be"):
        mlp()(OBS, ACTION[:, :2])
    with pytest.raises(ValueError, match=r"chunks of as many actions, got 6"):
        attention(pool=("first", 7))(OBS, ACTION)
