import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.errors import SettingError
from coa_compress.tasks.dehazing.haze import (
    add_haze,
    remove_haze,
    sample_haze,
    transmission,
    typical_haze,
)

seeds = st.integers(0, 2**31)
betas = st.floats(0.0, 2.0)


def scene(seed):
    generator = torch.Generator().manual_seed(seed)
    clear = torch.rand(3, 6, 7, generator=generator)
    depth = 3 * torch.rand(1, 6, 7, generator=generator)
    return clear, depth, torch.rand(3, generator=generator)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_full_transmission_changes_nothing(seed):
    clear, depth, airlight = scene(seed)

    hazy = add_haze(clear, transmission(depth, 0.0), airlight)

    torch.testing.assert_close(hazy, clear, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_no_transmission_leaves_the_airlight(seed):
    clear, _, airlight = scene(seed)

    hazy = add_haze(clear, torch.zeros(1, 6, 7), airlight)

    torch.testing.assert_close(hazy, airlight[:, None, None].expand(3, 6, 7), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, beta=betas)
def test_haze_stays_in_range_and_is_undone(seed, beta):
    clear, depth, airlight = scene(seed)
    passed = transmission(depth, beta)

    hazy = add_haze(clear, passed, airlight)

    assert hazy.min() >= -1e-6
    assert hazy.max() <= 1 + 1e-6
    torch.testing.assert_close(remove_haze(hazy, passed, airlight), clear, rtol=0, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, beta=betas, more=st.floats(0.01, 1.0))
def test_more_scattering_is_closer_to_the_airlight(seed, beta, more):
    clear, depth, airlight = scene(seed)

    thin = add_haze(clear, transmission(depth, beta), airlight)
    thick = add_haze(clear, transmission(depth, beta + more), airlight)

    color = airlight[:, None, None]
    assert bool(((thick - color).abs() <= (thin - color).abs() + 1e-6).all())


@settings(deadline=None, max_examples=30)
@given(seed=seeds, domain=st.sampled_from(["outdoor", "indoor"]))
def test_sampled_haze_is_in_range_and_repeatable(seed, domain):
    haze, again = (sample_haze(domain, torch.Generator().manual_seed(seed)) for _ in range(2))

    low, high = (0.04, 0.8) if domain == "outdoor" else (0.1, 1.6)
    assert low <= haze.beta <= high
    assert haze.airlight.shape == (3,)
    assert haze.airlight.min() >= 0.65 - 0.081
    assert haze.airlight.max() <= 1
    assert haze.beta == again.beta
    assert torch.equal(haze.airlight, again.airlight)


def test_a_fifth_of_the_outdoor_haze_is_dense_and_three_tenths_colored():
    generator = torch.Generator().manual_seed(0)
    drawn = [sample_haze("outdoor", generator) for _ in range(1000)]

    assert 0.14 < sum(haze.beta > 0.25 for haze in drawn) / 1000 < 0.24
    assert 0.25 < sum(bool(haze.airlight.std() > 1e-6) for haze in drawn) / 1000 < 0.35


def test_wrong_values_are_refused():
    with pytest.raises(SettingError, match="beta must be at least 0, got -1"):
        transmission(torch.ones(1), -1)
    with pytest.raises(SettingError, match="no haze domain 'sea': use outdoor or indoor"):
        sample_haze("sea", torch.Generator())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), domain=st.sampled_from(["outdoor", "indoor"]))
def test_haze_for_evaluation_is_gray_and_within_the_ranges_of_reside(seed, domain):
    haze = typical_haze(domain, torch.Generator().manual_seed(seed))

    low, high = {"outdoor": (0.04, 0.2), "indoor": (0.1, 1.5)}[domain]
    assert low <= haze.beta <= high
    assert 0.7 <= float(haze.airlight[0]) <= 1.0
    assert bool((haze.airlight == haze.airlight[0]).all())


def test_haze_for_evaluation_names_the_known_domains():
    with pytest.raises(SettingError, match="no haze domain 'sea': use outdoor or indoor"):
        typical_haze("sea", torch.Generator())
