"""What a limited training changes, and the mean teacher that follows it."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.errors import ModelError, SettingError
from coa_compress.training.averaging import MeanTeacherSettings, averaged_copy, follow_
from coa_compress.training.updates import limited, merged


def net_of(*, norm=True, groups=1):
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=groups),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 8 * 8, 5),
    )


def shaken_(model, size=0.1):
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn_like(parameter))
    return model


IMAGE = torch.linspace(-1, 1, 2 * 4 * 4 * 4).reshape(2, 4, 4, 4)


@settings(deadline=None, max_examples=20)
@given(rank=st.integers(1, 12), groups=st.sampled_from([1, 2, 4]))
def test_low_rank_deltas_start_at_zero_and_merge_exactly(rank, groups):
    net = net_of(groups=groups).eval()
    trained = limited(net, "low_rank", rank=rank)
    assert torch.equal(trained(IMAGE), net(IMAGE))

    shaken_(trained)
    plain = merged(trained, net)

    assert torch.equal(plain(IMAGE), trained(IMAGE))
    assert not torch.equal(plain(IMAGE), net(IMAGE))
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert list(plain.state_dict()) == list(net.state_dict())
    for name, weight in plain.named_parameters():
        delta = (
            (weight - dict(net.named_parameters())[name])
            .detach()
            .flatten(1 if weight.ndim > 1 else 0)
        )
        if weight.ndim == 1:
            assert not delta.any()
        else:
            assert torch.linalg.matrix_rank(delta, atol=1e-5) <= rank
        assert weight.requires_grad


def test_norm_updates_touch_norm_layers_alone():
    net = net_of().eval()

    plain = merged(shaken_(limited(net, "norm")), net)

    changed = {
        name
        for (name, new), old in zip(plain.named_parameters(), net.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed == {"1.weight", "1.bias"}


def test_all_is_a_copy():
    net = net_of()
    trained = limited(net, "all")
    assert trained is not net
    assert all(p.requires_grad for p in trained.parameters())


def test_the_network_itself_is_unchanged():
    net = net_of()
    before = copy.deepcopy(net.state_dict())
    for update in ("all", "norm", "low_rank"):
        shaken_(limited(net, update))
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


def test_copies_of_a_limited_network_stand_alone():
    trained = limited(net_of().eval(), "low_rank")
    twin = averaged_copy(trained)

    shaken_(trained)

    assert not torch.equal(trained(IMAGE), twin(IMAGE))


def test_shared_weights_stay_shared():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.third = nn.Linear(4, 4)

    trained = shaken_(limited(Tied(), "low_rank"))

    assert torch.equal(trained.first.weight, trained.second.weight)
    assert trained.first.weight is trained.second.weight


@pytest.mark.parametrize(
    ("net", "update", "match"),
    [
        (net_of(norm=False), "norm", "Sequential has no norm layer with weights of its own"),
        (nn.Sequential(nn.BatchNorm2d(4, affine=False)), "norm", "use low_rank or all"),
        (nn.Sequential(nn.BatchNorm2d(4)), "low_rank", "no trainable weight of two dimensions"),
    ],
)
def test_nothing_to_train_is_an_error(net, update, match):
    with pytest.raises(ModelError, match=match):
        limited(net, update)


def test_a_mean_teacher_moves_only_when_it_is_due():
    slow, fast = nn.Linear(1, 1), nn.Linear(1, 1)
    nn.init.zeros_(slow.weight)
    nn.init.ones_(fast.weight)
    rule = MeanTeacherSettings(decay=0.5, interval=3, warmup_updates=2)

    seen = []
    for step in range(1, 10):
        follow_(slow, fast, step, rule)
        seen.append(slow.weight.item())

    # the first update has decay 0, so that the start is forgotten at once
    assert seen == [0, 0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("buffers", "wanted"), [("average", 0.5), ("copy", 1.0)])
def test_buffers_are_averaged_or_copied(buffers, wanted):
    slow, fast = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
    fast.running_mean.fill_(1.0)
    fast.num_batches_tracked.fill_(9)
    nn.init.zeros_(slow.weight)

    follow_(slow, fast, 1, MeanTeacherSettings(decay=0.5, buffers=buffers))

    assert slow.running_mean.item() == wanted
    assert slow.num_batches_tracked.item() == 9
    assert slow.weight.item() == 0.5


def test_a_bad_mean_teacher_is_an_error():
    with pytest.raises(SettingError, match=r"MeanTeacherSettings\.interval must be at least 1"):
        MeanTeacherSettings(interval=0)
    with pytest.raises(SettingError, match=r"MeanTeacherSettings\.decay must be below 1"):
        MeanTeacherSettings(decay=1.0)
