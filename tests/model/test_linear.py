"""The linear layer by oneDNN against PyTorch's own, forward and backward, for every layout that the networks use."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ding_ebm.model import linear as module
from ding_ebm.model.linear import Linear, linear


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """Grows by one with each product that oneDNN takes."""
    if not module._HAS_ONEDNN:
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(module, "_LIGHT_WITH_GRADIENTS", 0)  # small layers are enough then
    calls: list[int] = []
    by_onednn = module._onednn_linear
    monkeypatch.setattr(module, "_onednn_linear", lambda *args: calls.append(1) or by_onednn(*args))
    return calls


@pytest.fixture(params=["as it chooses", "by oneDNN"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers as they would be multiplied, and as large ones are."""
    if request.param == "by oneDNN":
        monkeypatch.setattr(module, "_LIGHT_WITH_GRADIENTS", 0)


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "rows": lambda: (inputs(40, 12), inputs(9, 12, seed=1)),
    "many actions a state": lambda: (inputs(5, 8, 12), inputs(9, 12, seed=1)),
    "transposed weight": lambda: (inputs(40, 12), inputs(12, 9, seed=1).t()),
    "columns of a weight": lambda: (inputs(40, 12), inputs(9, 30, seed=1)[:, 3:15]),
    "columns of an input": lambda: (inputs(40, 30)[:, 3:15], inputs(9, 12, seed=1)),
    "one row": lambda: (inputs(1, 12), inputs(9, 12, seed=1)),
    "one output": lambda: (inputs(40, 12), inputs(1, 12, seed=1)),
    "one column": lambda: (inputs(40, 1), inputs(9, 1, seed=1)),
}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("both_ways")
def test_it_is_the_linear_map_and_has_its_gradients(layout, with_bias):
    x, weight = LAYOUTS[layout]()
    bias = inputs(len(weight), seed=2) if with_bias else None
    leaves = [tensor for tensor in (x, weight, bias) if tensor is not None]
    results = []
    for function in (linear, F.linear):
        taken = [leaf.detach().requires_grad_() for leaf in leaves]
        y = function(*taken)
        results.append((y, *torch.autograd.grad((y * inputs(*y.shape, seed=3)).sum(), taken)))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("both_ways")
def test_a_gradient_that_is_expanded_from_one_number_is_taken_right():
    x, layer = inputs(40, 12), Linear(12, 9)
    layer(x).sum().backward()  # its gradient has strides of zero
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(9, 12), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, torch.full((9,), 40.0))


def test_its_gradients_have_gradients_of_their_own(products):
    found = []
    for layer_type in (Linear, nn.Linear):
        torch.manual_seed(0)
        first, second = layer_type(12, 16), layer_type(16, 9)
        x = inputs(40, 12).requires_grad_()
        (grad,) = torch.autograd.grad(second(torch.tanh(first(x))).square().sum(), x, create_graph=True)
        leaves = [x, *first.parameters(), *second.parameters()]
        found.append((grad, *torch.autograd.grad(grad.square().sum(), leaves)))
    assert products
    for ours, torchs in zip(*found):
        assert torchs.abs().max() > 1e-3
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_float32_rows_go_to_onednn_and_what_it_does_not_hold_does_not(products):
    layer = Linear(12, 9)
    layer(inputs(40, 12))
    assert len(products) == 1
    layer(inputs(2, 12))
    Linear(12, 2)(inputs(40, 12))
    linear(inputs(40, 12).double(), layer.weight.double(), layer.bias.double())
    linear(inputs(40, 30)[:, :12], layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(inputs(40, 12)).dtype == torch.bfloat16
    assert len(products) == 1


def test_light_products_with_gradients_are_left_to_torch(monkeypatch):
    layer, taken = Linear(16, 32), []
    monkeypatch.setattr(module, "_OneDNNLinear", lambda: taken.append(1))
    assert layer(inputs(128, 16)).grad_fn.name().startswith("Addmm") and not taken


def test_a_frozen_layer_computes_no_gradient_of_its_weights(products):
    layer = Linear(12, 9).requires_grad_(False)
    x = inputs(40, 12).requires_grad_()
    layer(x).sum().backward()
    assert len(products) == 2 and layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(40, 12), rtol=1e-5, atol=1e-5)


def test_it_begins_as_torchs_own_layer_does():
    torch.manual_seed(0)
    ours = Linear(12, 9).state_dict()
    torch.manual_seed(0)
    theirs = nn.Linear(12, 9).state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_no_rows_give_no_rows():
    assert Linear(12, 9)(torch.empty(0, 12)).shape == (0, 9)


CHANGES = {
    "a fused optimizer": lambda layer: step_of(torch.optim.Adam(layer.parameters(), lr=0.1, fused=True), layer),
    "a plain optimizer": lambda layer: step_of(torch.optim.SGD(layer.parameters(), lr=0.1), layer),
    "a moving average": lambda layer: torch._foreach_lerp_([layer.weight], [torch.zeros_like(layer.weight)], 0.1),
    "a copy": lambda layer: layer.weight.copy_(layer.weight + 1),
    "a checkpoint": lambda layer: layer.load_state_dict(Linear(16, 16).state_dict()),
    "another tensor": lambda layer: setattr(layer.weight, "data", torch.ones(16, 16)),
}


def step_of(optimizer: torch.optim.Optimizer, layer: Linear) -> None:
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_kept_layout_is_given_up_when_the_weight_changes(products, change):
    layer, x = Linear(16, 16), inputs(10, 16)

    def both() -> tuple[Tensor, Tensor]:
        return layer(x), layer.transposed(x)

    def right() -> tuple[Tensor, Tensor]:
        return F.linear(x, layer.weight, layer.bias), x @ layer.weight

    for _ in range(3):
        torch.testing.assert_close(both(), right(), rtol=1e-5, atol=1e-5)
    assert len(products) == 6 and set(layer._kept._layouts) == {False, True}
    before = right()
    CHANGES[change](layer)
    assert not torch.allclose(right()[1], before[1])
    for _ in range(3):
        torch.testing.assert_close(both(), right(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 32, 32), (10, 8, 32), (10, 200, 200), (10, 256, 4), (300, 64, 64)])
@pytest.mark.parametrize("grad", [False, True])
def test_a_bound_layer_is_the_layer_and_its_transpose(size, grad):
    rows, n_in, n_out = size
    layer, x, y = Linear(n_in, n_out), inputs(rows, n_in), inputs(rows, n_out)
    with torch.set_grad_enabled(grad):
        forward, backward = layer.bound(), layer.bound(transpose=True)
        for _ in range(2):
            torch.testing.assert_close(forward(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(backward(y), y @ layer.weight, rtol=1e-5, atol=1e-5)
        assert forward(x).requires_grad is grad


@torch.no_grad()
def test_a_layer_bound_anew_sees_that_its_weight_has_changed(products):
    layer, x = Linear(200, 200), inputs(10, 200)
    for _ in range(2):
        torch.testing.assert_close(layer.bound()(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)
        layer.weight.mul_(-1.0)
    assert len(products) == 2


@torch.no_grad()
def test_a_layer_with_a_kept_layout_is_copied_and_saved_without_it(tmp_path):
    layer, x = Linear(16, 16), inputs(10, 16)
    for _ in range(3):
        layer(x)
    assert layer._kept._layouts
    torch.save(layer, tmp_path / "layer.pt")
    for other in (copy.deepcopy(layer), torch.load(tmp_path / "layer.pt", weights_only=False)):
        assert not other._kept._layouts and torch.equal(other(x), layer(x))
        other.weight.zero_()
        assert torch.equal(other(x), layer.bias.expand(10, 16)) and not torch.equal(other(x), layer(x))


def test_layouts_are_not_kept_where_gradients_are_taken(products):
    layer, x = Linear(16, 16), inputs(10, 16)
    for _ in range(3):
        layer(x)
        layer.transposed(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 3 * x.sum(0)[:, None].expand(16, 16), rtol=1e-5, atol=1e-5)
    assert not layer._kept._layouts
