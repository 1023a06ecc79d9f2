"""Facts about channel scores, on networks of two or three layers."""

import copy
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coa_compress.artifacts import Batch, ChannelGroup, Member
from coa_compress.errors import ModelError, RegistryError, SettingError, StructureError
from coa_compress.scoring.activation import score_activation
from coa_compress.scoring.catalog import SCORERS
from coa_compress.scoring.fisher import score_fisher
from coa_compress.scoring.magnitude import score_magnitude
from coa_compress.scoring.random import score_random
from coa_compress.scoring.readers import input_moments
from coa_compress.scoring.sensitivity import score_output_sensitivity
from coa_compress.scoring.surgeon import reading_of, score_surgeon
from coa_compress.scoring.taylor import score_taylor

WIDTH = 6


def squared_error(output: Tensor, batch: Batch) -> Tensor:
    return (output - batch.target).square().mean()


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, 3, 1)
    )
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2.0)
    return net


def one_group(order: Tensor | None = None) -> list[ChannelGroup]:
    positions = (torch.arange(WIDTH) if order is None else order)[:, None]
    others = [f"{path}" for path in ("0.bias", "1.weight", "1.bias", "1.running_mean")]
    members = (
        Member("0.weight", 0, "output", positions),
        *(Member(name, 0, "other", positions) for name in others),
        Member("3.weight", 1, "input", positions),
    )
    return [ChannelGroup("0", WIDTH, members)]


def examples(seed: int = 0, *, n: int = 3, with_target: bool = True) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(n, 3, 5, 5, generator=generator)
    target = torch.rand(n, 3, 5, 5, generator=generator)
    return [Batch(image, target if with_target else None)]


@pytest.mark.parametrize("name", SCORERS.names())
def test_scores_are_finite_float64_from_zero_and_of_the_right_shape(name):
    scores = SCORERS.get(name)(small_net(), one_group(), examples(), squared_error)

    assert list(scores) == ["0"]
    assert scores["0"].shape == (WIDTH,)
    assert scores["0"].dtype == torch.float64
    assert scores["0"].device.type == "cpu"
    assert bool(torch.isfinite(scores["0"]).all())
    assert float(scores["0"].min()) >= 0
    assert not scores["0"].requires_grad


@pytest.mark.parametrize("name", SCORERS.names())
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(name, training):
    net = small_net().train(training)
    net[1].eval()
    net[0].weight.requires_grad = False
    net[3].weight.grad = torch.ones_like(net[3].weight)
    before = copy.deepcopy(net.state_dict())

    with torch.no_grad():
        SCORERS.get(name)(net, one_group(), examples(), squared_error)

    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training is training
    assert net[1].training is False
    assert net[0].weight.requires_grad is False
    assert net[0].weight.grad is None
    assert torch.equal(net[3].weight.grad, torch.ones_like(net[3].weight))
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 0


@pytest.mark.parametrize("name", [name for name in SCORERS.names() if name != "random"])
@settings(deadline=None, max_examples=5)
@given(order=st.permutations(range(WIDTH)))
def test_scores_permute_with_the_channels(name, order):
    scorer, order = SCORERS.get(name), torch.tensor(order)

    plain = scorer(small_net(), one_group(), examples(), squared_error)["0"]
    permuted = scorer(small_net(), one_group(order), examples(), squared_error)["0"]

    torch.testing.assert_close(permuted, plain[order], rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["fisher", "sensitivity", "surgeon", "taylor"])
def test_a_channel_that_nobody_reads_has_score_zero(name):
    net = small_net()
    with torch.no_grad():
        net[3].weight[:, 2] = 0

    score = SCORERS.get(name)(net, one_group(), examples(), squared_error)["0"]

    assert float(score[2]) == 0
    assert float(score.max()) > 0


def test_fisher_and_taylor_are_activation_times_gradient_squared_before_and_after_the_mean():
    net, (batch,) = small_net().eval(), examples()
    changes = []
    for i in range(3):
        hidden = net[:3](batch.input[i : i + 1]).detach().requires_grad_()
        one = Batch(batch.input[i : i + 1], batch.target[i : i + 1])
        (gradient,) = torch.autograd.grad(squared_error(net[3](hidden), one), hidden)
        changes.append((hidden * gradient).sum(dim=(0, 2, 3)).double())
    expected = torch.stack(changes)

    fisher = score_fisher(net, one_group(), [batch], squared_error)["0"]
    taylor = score_taylor(net, one_group(), [batch], squared_error)["0"]

    torch.testing.assert_close(fisher, expected.square().mean(0) / 2, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(taylor, expected.mean(0).square(), rtol=1e-4, atol=1e-12)
    assert bool((taylor <= 2 * fisher).all())


def test_taylor_vanishes_where_changes_of_two_examples_cancel_and_fisher_does_not():
    net = nn.Conv2d(1, 1, 1, bias=False)
    group = ChannelGroup("g", 1, (Member("weight", 1, "input", torch.tensor([[0]])),))
    batch = Batch(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1), torch.zeros(2, 1, 1, 1))

    taylor = score_taylor(net, [group], [batch], lambda output, batch: output.sum())["g"]
    fisher = score_fisher(net, [group], [batch], lambda output, batch: output.sum())["g"]

    assert float(taylor) == 0
    assert float(fisher) == pytest.approx(float(net.weight.detach().square()) / 2)


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_scores_do_not_depend_on_how_examples_are_batched(name):
    (batch,) = examples()
    split = [Batch(batch.input[i : i + 1], batch.target[i : i + 1]) for i in range(3)]

    together = SCORERS.get(name)(small_net(), one_group(), [batch], squared_error)["0"]
    apart = SCORERS.get(name)(small_net(), one_group(), split, squared_error)["0"]

    assert torch.equal(together, apart)


def test_activation_is_the_mean_square_where_the_channel_is_read():
    net, (batch,) = small_net().eval(), examples()
    with torch.no_grad():
        squares = net[:3](batch.input).square().mean(dim=(0, 2, 3)).double()

    score = score_activation(net, one_group(), [batch], squared_error)["0"]

    torch.testing.assert_close(score, squares / squares.mean(), rtol=1e-5, atol=0)


def test_a_group_without_linear_reader_has_the_scores_that_need_none():
    net = nn.Conv2d(3, 4, 1)
    positions = torch.arange(4)[:, None]
    members = (Member("weight", 0, "output", positions), Member("bias", 0, "other", positions))
    group, batches = [ChannelGroup("", 4, members)], [Batch(torch.rand(1, 3, 2, 2), torch.zeros(1))]

    def loss(output, batch):
        return output.square().sum()

    activation, surgeon = (
        f(net, group, batches, loss)[""] for f in (score_activation, score_surgeon)
    )

    assert torch.equal(activation, score_magnitude(net, group, [], loss)[""])
    assert torch.equal(surgeon, score_fisher(net, group, batches, loss)[""])


def test_removal_costs_add_up_to_the_least_squares_error():
    net, (batch,) = small_net().eval(), examples()
    moments = input_moments(net, ["3"], [batch])["3"]
    reading = reading_of(net[3], moments, torch.arange(WIDTH)[:, None])
    with torch.no_grad():
        features = net[:3](batch.input).movedim(1, -1).reshape(-1, WIDTH).double()
        output = features @ net[3].weight.detach().double().view(3, WIDTH).t()
        scale = output.square().sum()

    total = 0.0
    for channel in (4, 0, 2):
        total += float(reading.costs[channel])
        reading = reading.without(channel)

    kept = torch.cat([features[:, [1, 3, 5]], torch.ones(len(features), 1)], dim=1)
    left = output - kept @ (torch.linalg.pinv(kept) @ output)
    assert total == pytest.approx(float(left.square().sum() / scale), rel=0.02)


def test_surgeon_finds_one_of_two_equal_channels_free():
    net = small_net().eval()
    with torch.no_grad():
        net[1].bias[1] = 2.0  # neither is dead
        for tensor in (net[0].weight, net[0].bias, *net[1].state_dict().values()):
            if tensor.dim():
                tensor[3] = tensor[1]
        net[3].weight[:, 3] = net[3].weight[:, 1]

    score = score_surgeon(net, one_group(), examples(), squared_error)["0"]
    fisher = score_fisher(net, one_group(), examples(), squared_error)["0"]

    assert float(score[[1, 3]].min()) < 0.01 * float(score[[1, 3]].max())
    assert float(fisher[1]) == pytest.approx(float(fisher[3]))


def test_sensitivity_predicts_the_change_of_the_output():
    net = small_net().eval()
    (batch,) = examples(n=64, with_target=False)
    with torch.no_grad():
        whole, changes = net(batch.input), []
        for channel in range(WIDTH):
            without = copy.deepcopy(net)
            without[3].weight[:, channel] = 0
            changes.append((without(batch.input) - whole).square().mean().double())

    score = score_output_sensitivity(net, one_group(), [batch], squared_error)["0"]

    # the change is linear in the reader here, so only the probes are random
    torch.testing.assert_close(score, torch.stack(changes), rtol=0.5, atol=1e-6)
    assert torch.corrcoef(torch.stack([score, torch.stack(changes)]))[0, 1] > 0.9


def test_taylor_without_ground_truth_is_the_sensitivity():
    batches = examples(with_target=False)

    score = score_taylor(small_net(), one_group(), batches, squared_error)["0"]

    expected = score_output_sensitivity(small_net(), one_group(), batches, squared_error)["0"]
    assert torch.equal(score, expected)
    assert float(score.max()) > 0


def test_taylor_with_its_own_output_as_target_is_the_sensitivity():
    net, image = small_net().eval(), examples()[0].input
    with torch.no_grad():
        own = torch.cat([net(image[i : i + 1]) for i in range(len(image))])

    score = score_taylor(net, one_group(), [Batch(image, own)], squared_error)["0"]

    expected = score_output_sensitivity(net, one_group(), [Batch(image)], squared_error)["0"]
    assert torch.equal(score, expected)


def test_a_group_without_reader_is_scored_by_its_filters_and_biases():
    net = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        net.bias.copy_(torch.tensor([0.5, -2.0]))
    positions = torch.arange(2)[:, None]
    members = (Member("weight", 0, "output", positions), Member("bias", 0, "other", positions))
    batch = Batch(torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 1, 1))

    score = score_taylor(
        net, [ChannelGroup("", 2, members)], [batch], lambda output, batch: output.sum()
    )

    assert score[""].tolist() == [2.25, 0.0]


def test_repeated_positions_belong_to_one_channel():
    net = nn.Conv2d(4, 1, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1))
    group = ChannelGroup("g", 2, (Member("weight", 1, "input", torch.tensor([[0, 3], [1, 2]])),))
    batch = Batch(torch.ones(1, 4, 1, 1), torch.zeros(1, 1, 1, 1))

    taylor = score_taylor(net, [group], [batch], lambda output, batch: output.sum())["g"]
    magnitude = score_magnitude(net, [group], [], squared_error)["g"]

    assert taylor.tolist() == [25.0, 25.0]
    assert magnitude.tolist() == [1.0, 1.0]


def test_magnitude_weighs_small_and_large_layers_alike():
    net, large = small_net(), small_net()
    with torch.no_grad():
        large[3].weight.mul_(1000)

    plain = score_magnitude(net, one_group(), [], squared_error)["0"]
    scaled = score_magnitude(large, one_group(), [], squared_error)["0"]

    torch.testing.assert_close(plain, scaled)
    assert float(plain.mean()) == pytest.approx(1.0)


def test_magnitude_is_zero_only_for_a_channel_of_zero_weights():
    net = small_net()
    with torch.no_grad():
        net[0].weight[4] = 0
        net[3].weight[:, 4] = 0

    score = score_magnitude(net, one_group(), [], squared_error)["0"]

    assert (score == 0).nonzero().flatten().tolist() == [4]


def test_random_depends_on_the_seed_alone():
    same = [score_random(small_net(i), one_group(), [], squared_error)["0"] for i in range(2)]
    other = score_random(small_net(), one_group(), [], squared_error, seed=1)["0"]

    assert torch.equal(*same)
    assert not torch.equal(same[0], other)


class WritingOver(nn.Module):
    """Saves a copy in evaluation mode, as partial convolutions do: no gradient passes there."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net
        self.partial = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        output = torch.sigmoid(self.net(x))
        if self.training:
            return torch.cat([self.partial(output[:, :2]), output[:, 2:]], dim=1)
        output[:, :2] = self.partial(output[:, :2])
        return output


@pytest.mark.parametrize("scorer", [score_output_sensitivity, score_fisher, score_taylor])
def test_code_that_writes_over_its_activations_is_scored_like_code_that_does_not(scorer):
    net = WritingOver(small_net())
    batches = [Batch(torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6))]
    reader = Member("net.3.weight", 1, "input", torch.arange(WIDTH)[:, None])
    group = [ChannelGroup("net.0", WIDTH, (reader,))]

    class Plain(WritingOver):
        def forward(self, x: Tensor) -> Tensor:
            output = torch.sigmoid(self.net(x))
            return torch.cat([self.partial(output[:, :2]), output[:, 2:]], dim=1)

    plain = Plain(net.net)
    plain.partial = net.partial
    found = scorer(net, group, batches, squared_error)["net.0"]
    torch.testing.assert_close(found, scorer(plain, group, batches, squared_error)["net.0"])
    assert float(found.max()) > 0


def test_sensitivity_takes_outputs_in_any_container():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, image):
            output = self.net(image)
            return {"image": output, "rest": [output * 2, (torch.zeros(1, dtype=torch.int64),)]}

    members = tuple(
        Member(f"net.{m.tensor}", m.dim, m.role, m.positions) for m in one_group()[0].members
    )

    score = score_output_sensitivity(
        Two(), [ChannelGroup("0", WIDTH, members)], examples(), squared_error
    )

    assert float(score["0"].max()) > 0


@pytest.mark.parametrize("name", sorted(set(SCORERS.names()) - {"magnitude", "random"}))
def test_no_example_is_an_error(name):
    with pytest.raises(SettingError, match="at least one calibration batch"):
        SCORERS.get(name)(small_net(), one_group(), [], squared_error)


@pytest.mark.parametrize("name", sorted(set(SCORERS.names()) - {"random"}))
def test_a_group_of_another_network_is_an_error(name):
    group = ChannelGroup("x", 2, (Member("x.weight", 0, "output", torch.arange(2)[:, None]),))
    with pytest.raises(StructureError, match=r"group 'x' names 'x\.weight'.*analyze"):
        SCORERS.get(name)(small_net(), [group], examples(), squared_error)


@pytest.mark.parametrize("name", sorted(set(SCORERS.names()) - {"magnitude", "random"}))
def test_a_network_that_is_not_finite_is_an_error(name):
    net = small_net()
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="scores of group '0' are not finite"):
        SCORERS.get(name)(net, one_group(), examples(), squared_error)


def test_an_unknown_scorer_is_named_with_its_neighbor():
    with pytest.raises(RegistryError, match="did you mean taylor"):
        SCORERS.get("tayler")


def test_built_in_scorers_are_there_in_a_fresh_process():
    code = "from coa_compress.scoring.catalog import SCORERS; assert SCORERS.get('taylor')"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
