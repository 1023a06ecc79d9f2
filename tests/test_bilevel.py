"""The gradient through one step on a lower loss, against exact ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad

from coa_compress.training.bilevel import carrying, hypergradient


class Point(nn.Module):
    """Its output is its weights."""

    def __init__(self, start):
        super().__init__()
        self.place = nn.Parameter(start)

    def forward(self):
        return self.place


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), rate=st.floats(0.0, 0.5))
def test_on_quadratics_it_is_the_closed_form(seed, rate):
    generator = torch.Generator().manual_seed(seed)
    root, start, goal = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((4, 4), (4,), (4,))
    )
    hessian = root @ root.T
    point = Point(start)

    value, gradient = hypergradient(
        point,
        lambda net: (net() - goal).square().sum() / 2,
        lambda net: net() @ hessian @ net() / 2,
        rate=rate,
    )

    step = torch.eye(4, dtype=torch.float64) - rate * hessian
    torch.testing.assert_close(value, (step @ start - goal).square().sum() / 2)
    torch.testing.assert_close(gradient["place"], step @ (step @ start - goal))


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 3, 1)
    ).double()


def losses():
    real, hazy, clear = torch.rand(3, 2, 3, 6, 6, dtype=torch.float64)
    return (
        lambda net: (net(real) - 0.3).square().mean(),
        lambda net: (net(hazy) - clear).square().mean(),
    )


@pytest.mark.parametrize("order", ["unrolled", "first_order"])
def test_on_a_network_it_is_what_automatic_differentiation_says(order):
    net, (upper, lower), rate = small_net(), losses(), 0.5
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    buffers = {name: b.clone() for name, b in net.named_buffers()}

    def at(loss, values):
        kept = {name: b.clone() for name, b in buffers.items()}
        return loss(lambda x: functional_call(net, {**values, **kept}, (x,)))

    def through_the_step(values):
        slopes = grad(lambda w: at(lower, w))(values)
        return at(upper, {name: w - rate * slopes[name] for name, w in values.items()})

    value, found = hypergradient(net, upper, lower, rate=rate, order=order)

    torch.testing.assert_close(value, through_the_step(weights))
    if order == "unrolled":
        exact = grad(through_the_step)(weights)
    else:
        slopes = grad(lambda w: at(lower, w))(weights)
        moved = {name: w - rate * slopes[name] for name, w in weights.items()}
        exact = grad(lambda w: at(upper, w))(moved)
    for name, slope in exact.items():
        # what is left is the third derivative over the radius of the differences
        assert (found[name] - slope).norm() < 1e-3 * slope.norm() + 1e-9


def test_curvature_matters_where_there_is_some():
    net, (upper, lower) = small_net(), losses()

    whole, first = (
        hypergradient(net, upper, lower, rate=0.5, order=order)[1]["3.weight"]
        for order in ("unrolled", "first_order")
    )

    assert (whole - first).norm() > 0.01 * first.norm()


def test_the_network_stays_as_it_was():
    net, (upper, lower) = small_net().train(), losses()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    hypergradient(net, upper, lower, rate=0.5)

    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training


def test_frozen_weights_do_not_move_and_get_nothing():
    net, (upper, lower) = small_net(), losses()
    net[0].requires_grad_(requires_grad=False)

    _, gradient = hypergradient(net, upper, lower, rate=0.5)

    assert set(gradient) == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_dropout_drops_the_same_in_every_pass():
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double().train()
    inputs = torch.rand(4, 8, dtype=torch.float64)

    def loss(network):
        return network(inputs).square().mean()

    torch.manual_seed(3)
    first = hypergradient(net, loss, loss, rate=0.1)[1]
    torch.manual_seed(3)
    second = hypergradient(net, loss, loss, rate=0.1)[1]

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(slope.abs().max() < 100 for slope in first.values())


def test_a_flat_upper_loss_gives_no_gradient():
    net = nn.Linear(2, 1)
    inputs = torch.ones(1, 2)

    _, gradient = hypergradient(
        net, lambda m: 0 * m(inputs).sum(), lambda m: m(inputs).square().sum(), rate=0.1
    )

    assert all(not slope.any() for slope in gradient.values())


def test_a_scalar_can_carry_any_gradient():
    net = nn.Linear(2, 1)
    wanted = {"weight": torch.tensor([[3.0, -1.0]]), "bias": torch.tensor([0.25])}

    scalar = carrying(torch.tensor(7.0), net, wanted)
    (2 * scalar).backward()

    assert scalar.item() == 7.0
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * wanted[name])
