"""Haze options for training: physics, ranges, and that the same seed gives the same image."""

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.errors import SettingError
from coa_compress.recipe.files import parse_recipe
from coa_compress.tasks.camera import (
    in_linear_light,
    random_jpeg,
    sensor_noise,
    through_jpeg,
)
from coa_compress.tasks.dehazing.atmosphere import (
    drifting_density,
    uncertain_depth,
    varying_airlight,
)
from coa_compress.tasks.dehazing.data import DehazingData
from coa_compress.tasks.dehazing.haze import add_haze, heavy_haze, sample_haze, transmission
from coa_compress.tasks.dehazing.hazing import HazeSettings, hazed
from coa_compress.tasks.dehazing.night import glow_profile, night_scene
from coa_compress.tasks.dehazing.scenes import ScenePool
from coa_compress.tasks.dehazing.settings import DehazingSettings
from coa_compress.tasks.dice import Dice

OPTIONS = [field.name for field in fields(HazeSettings)]
SIZE = (12, 16)
seeds = st.integers(0, 10**6)


def dice(seed=0):
    return Dice(torch.Generator().manual_seed(seed))


def scene(seed=0, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(3, *size, generator=generator), 4 * torch.rand(1, *size, generator=generator)


def luminance(image):
    return image.mean(dim=0)


@pytest.mark.parametrize("domain", ["outdoor", "indoor"])
def test_without_options_haze_is_what_it_was(domain):
    clear, depth = scene()
    haze = sample_haze(domain, torch.Generator().manual_seed(3))

    hazy, truth = hazed(clear, depth, domain, HazeSettings(), dice(3))

    assert torch.equal(hazy, add_haze(clear, transmission(depth, haze.beta), haze.airlight))
    assert truth is clear


@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    taken=st.sets(st.sampled_from(OPTIONS)),
    domain=st.sampled_from(["outdoor", "indoor"]),
)
def test_any_options_give_images_in_range_that_depend_on_the_seed_only(seed, taken, domain):
    clear, depth = scene(seed)
    chosen = HazeSettings(**dict.fromkeys(taken, 1.0))
    before = torch.random.get_rng_state()

    hazy, truth = hazed(clear, depth, domain, chosen, dice(seed))
    again, _ = hazed(clear, depth, domain, chosen, dice(seed))

    assert hazy.shape == truth.shape == clear.shape
    assert min(hazy.min(), truth.min()) >= 0
    assert max(hazy.max(), truth.max()) <= 1 + 1e-6
    assert torch.equal(hazy, again)
    assert torch.equal(before, torch.random.get_rng_state())
    assert "night" in taken or truth is clear


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_changes_the_image(option):
    clear, depth = scene(1)

    plain, _ = hazed(clear, depth, "outdoor", HazeSettings(), dice(1))
    other, _ = hazed(clear, depth, "outdoor", HazeSettings(**{option: 1.0}), dice(1))

    assert not torch.equal(plain, other)


def test_an_option_is_taken_as_often_as_asked():
    clear, depth = scene()
    lit = [
        hazed(clear, depth, "outdoor", HazeSettings(night=0.3), dice(s))[1] is not clear
        for s in range(300)
    ]

    assert 0.23 < sum(lit) / 300 < 0.37


@settings(deadline=None, max_examples=30)
@given(seed=seeds, domain=st.sampled_from(["outdoor", "indoor"]))
def test_heavy_haze_lets_a_fiftieth_to_a_fourth_of_the_light_through(seed, domain):
    haze = heavy_haze(domain, torch.Generator().manual_seed(seed))
    median = torch.tensor({"outdoor": 3.0, "indoor": 1.0}[domain])

    assert 0.015 < transmission(median, haze.beta) < 0.23
    assert bool((haze.airlight == haze.airlight[0]).all())


def test_heavy_haze_names_the_known_domains():
    with pytest.raises(SettingError, match="no haze domain 'sea': use outdoor or indoor"):
        heavy_haze("sea", torch.Generator())


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_drift_moves_haze_about_and_makes_none(seed):
    density = drifting_density(SIZE, dice(seed))

    assert density.min() > 0
    assert density.mean() == pytest.approx(1.0, abs=1e-5)
    assert density.std() > 0.02


@settings(deadline=None, max_examples=30)
@given(seed=seeds, level=st.floats(0.3, 0.8))
def test_airlight_varies_around_its_color(seed, level):
    airlight = torch.full((3,), level)

    varied = varying_airlight(airlight, SIZE, dice(seed))

    assert (varied / level - 1).abs().max() <= 0.15 + 0.06 + 1e-5
    torch.testing.assert_close(varied.mean(dim=(1, 2)), airlight, rtol=0, atol=1e-5)


def test_a_constant_airlight_image_is_one_airlight():
    clear, depth = scene()
    color = torch.tensor([0.7, 0.8, 0.9])
    passed = transmission(depth, 0.3)

    spread = color[:, None, None].expand(3, *SIZE)
    assert torch.equal(add_haze(clear, passed, spread), add_haze(clear, passed, color))


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_uncertain_depth_is_wrong_by_parts_of_itself(seed):
    _, depth = scene(seed)

    wrong = uncertain_depth(depth, dice(seed))

    assert bool((wrong >= 0).all())
    assert bool((wrong[depth == 0] == 0).all())
    apart = (wrong / depth.clamp(min=1e-3)).log()[depth > 1e-3]
    assert 0 < apart.std() < 0.3
    assert torch.equal(uncertain_depth(2 * depth, dice(seed)), 2 * wrong)


@settings(deadline=None, max_examples=20)
@given(seed=seeds, gamma=st.floats(1.0, 2.6))
def test_linear_light_is_left_and_entered_again(seed, gamma):
    clear, _ = scene(seed)

    torch.testing.assert_close(
        in_linear_light(clear, lambda light: light, gamma), clear, rtol=0, atol=1e-5
    )


def test_haze_in_linear_light_is_brighter_than_in_encoded_values():
    black, half = torch.zeros(3, 2, 2), torch.full((1, 2, 2), 0.5)
    white = torch.ones(3)

    encoded = add_haze(black, half, white)
    linear = in_linear_light(black, lambda light: add_haze(light, half, white), 2.2)

    torch.testing.assert_close(linear, torch.full((3, 2, 2), 0.5 ** (1 / 2.2)))
    assert bool((linear > encoded).all())


def test_noise_of_a_sensor_grows_with_the_light_and_has_no_bias():
    gray = [torch.full((3, 64, 64), level) for level in (0.1, 0.7)]
    noisy = [[sensor_noise(image, dice(seed)) - image for image in gray] for seed in range(12)]

    dark, bright = (sum(float(pair[i].std()) for pair in noisy) for i in (0, 1))
    assert bright > dark
    assert abs(sum(float(pair[1].mean()) for pair in noisy)) / 12 < 1e-3


def test_jpeg_is_coarser_at_low_quality():
    smooth = torch.nn.functional.interpolate(scene()[0][None], (48, 64), mode="bicubic")[0]
    levels = smooth.clamp(0, 1).mul(255).round().to(torch.uint8)

    fine, coarse = (
        float((through_jpeg(levels, quality=q).float() - levels.float()).abs().mean())
        for q in (95, 30)
    )

    assert 0 < fine < coarse
    assert (random_jpeg(smooth.clamp(0, 1), dice()) - smooth.clamp(0, 1)).abs().mean() < 0.1


@settings(deadline=None, max_examples=30)
@given(thickness=st.floats(1.15, 4.0), forward=st.floats(0.0, 0.95))
def test_glow_falls_from_one_at_the_lamp(thickness, forward):
    profile = glow_profile(torch.linspace(0, math.pi, 60), thickness, forward)

    assert profile[0] == 1
    assert bool((profile.diff() <= 1e-4).all())
    assert profile.min() >= 0


def test_glow_is_wider_where_more_is_scattered():
    angle = torch.tensor([0.6])

    thin, thick = (glow_profile(angle, t, 0.85) for t in (1.2, 3.0))
    ahead, around = (glow_profile(angle, 1.5, q) for q in (0.95, 0.6))

    assert thick > thin
    assert around > ahead


@settings(deadline=None, max_examples=20)
@given(seed=seeds)
def test_clear_nights_need_no_dehazing(seed):
    clear, _ = scene(seed)

    hazy, truth = night_scene(clear, torch.ones(1, *SIZE), dice(seed))

    torch.testing.assert_close(hazy, truth)


def test_nights_are_darker_than_days_and_haze_brightens_what_is_dark():
    clear, depth = scene(2, (48, 64))
    nights = [night_scene(clear, transmission(depth, 0.3), dice(seed)) for seed in range(20)]

    assert sum(float(truth.mean()) for _, truth in nights) / 20 < 0.6 * float(clear.mean())
    for hazy, truth in nights:
        dark = luminance(truth) < 0.1
        assert luminance(hazy)[dark].mean() > luminance(truth)[dark].mean()


def test_settings_of_haze_are_parts():
    with pytest.raises(SettingError, match=r"HazeSettings.night must be at most 1.0, got 2"):
        HazeSettings(night=2)


def test_the_task_hazes_its_training_scenes_as_it_is_told():
    draws = [
        DehazingData(DehazingSettings(haze=chosen)).procedural.crop(32, dice(4))
        for chosen in (HazeSettings(), HazeSettings(night=1.0))
    ]

    assert luminance(draws[1][1]).mean() < luminance(draws[0][1]).mean()


def test_clutter_joins_the_training_scenes_only_when_asked_for():
    pools = [
        DehazingData(DehazingSettings(clutter=clutter)).procedural.parts[0][1].scenes
        for clutter in (0, 2)
    ]

    assert [len(pool) for pool in pools] == [24, 26]
    assert pools[0] == ScenePool(seed=1, views=24)
    with pytest.raises(SettingError, match=r"DehazingSettings.clutter must be at least 0, got -1"):
        DehazingSettings(clutter=-1)


def test_a_recipe_says_which_haze():
    text = "name: a\ntask: {name: dehazing, haze: {night: 0.2}}\nstages: {score: {}}\n"

    recipe = parse_recipe(text, source="a.yaml", overrides=["task.haze.jpeg=0.5"])

    assert recipe.task.settings.haze == HazeSettings(night=0.2, jpeg=0.5)
