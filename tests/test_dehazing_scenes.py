from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coa_compress.tasks.dehazing import photographs
from coa_compress.tasks.dehazing.crops import cut_window, random_window
from coa_compress.tasks.dehazing.photographs import photograph_names, photograph_scenes
from coa_compress.tasks.dehazing.scenes import ScenePool, render_clutter, render_scene, scene_pool
from coa_compress.tasks.dehazing.simulated import hazed_by_drift
from coa_compress.tasks.dice import Dice

SMALL = (48, 64)


@settings(deadline=None, max_examples=8)
@given(domain=st.sampled_from(["outdoor", "indoor"]), seed=st.integers(0, 10**6))
def test_a_scene_is_an_image_with_depth(domain, seed):
    scene = render_scene(domain, seed=seed, size=SMALL)

    depth = scene.depth.float()
    assert scene.clear.dtype == torch.uint8
    assert scene.clear.shape == (3, *SMALL)
    assert depth.shape == (1, *SMALL)
    assert bool((depth > 0).all())
    assert bool((depth <= 9).all())
    assert scene.clear.float().std() > 5
    assert depth.std() > 0.01


def test_a_scene_depends_on_its_seed_only():
    first, again, other = (render_scene("outdoor", seed=s, size=SMALL) for s in (4, 4, 5))

    assert torch.equal(first.clear, again.clear)
    assert torch.equal(first.depth, again.depth)
    assert not torch.equal(first.clear, other.clear)


def test_rendering_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    render_scene("indoor", seed=1, size=SMALL)
    assert torch.equal(before, torch.random.get_rng_state())


def test_depth_has_the_median_of_its_domain():
    outdoor = torch.stack(
        [render_scene("outdoor", seed=s, size=SMALL).depth.float().median() for s in range(8)]
    )
    indoor = torch.stack(
        [render_scene("indoor", seed=s, size=SMALL).depth.float().median() for s in range(8)]
    )

    assert 2.0 < outdoor.median() < 6.0
    assert 0.7 < indoor.median() < 1.4


@settings(deadline=None, max_examples=6)
@given(domain=st.sampled_from(["outdoor", "indoor"]), seed=st.integers(0, 10**6))
def test_clutter_is_a_repeatable_image_with_the_depth_of_its_domain(domain, seed):
    scene, again = (render_clutter(domain, seed=seed, size=SMALL) for _ in range(2))

    depth = scene.depth.float()
    low, high = {"outdoor": (2.3, 3.8), "indoor": (0.75, 1.3)}[domain]
    assert torch.equal(scene.clear, again.clear)
    assert torch.equal(scene.depth, again.depth)
    assert scene.clear.dtype == torch.uint8
    assert scene.clear.shape == (3, *SMALL)
    assert scene.clear.float().std() > 10
    assert low < depth.median() < high
    assert bool((depth > 0).all())
    assert bool((depth <= 9).all())


def test_what_hides_something_in_clutter_is_nearer():
    # a nearer shape is painted later: where depth jumps, color does, and depth has many jumps
    depth = render_clutter("outdoor", seed=3, size=(96, 128)).depth.float()[0]
    steps = (depth[:, 1:] / depth[:, :-1]).log().abs()

    assert 0.02 < float((steps > 0.1).float().mean()) < 0.5
    assert steps.median() < 0.02


def test_clutter_has_edges_at_every_scale_as_photographs_have():
    clear = render_clutter("indoor", seed=5, size=(96, 128)).clear.float().mean(dim=0)
    spectrum = torch.fft.rfft2(clear - clear.mean()).abs().square()
    rows = torch.fft.fftfreq(96)[:, None].abs()
    columns = torch.fft.rfftfreq(128)[None]
    frequency = (rows.square() + columns.square()).sqrt()
    power = [
        float(spectrum[(frequency > low) & (frequency <= 2 * low)].mean())
        for low in (0.03, 0.06, 0.12, 0.24)
    ]

    # the power of natural images falls with about the square of the frequency: by 4 an octave
    falls = [coarse / fine for coarse, fine in pairwise(power)]
    assert all(fall > 1.5 for fall in falls)
    assert 2.5 < (power[0] / power[-1]) ** (1 / 3) < 12


def test_a_pool_renders_what_it_is_asked_for_and_keeps_it():
    pool = ScenePool(seed=77, views=3, clutter=2)

    assert [pool[0].domain, pool[2].domain, pool[3].domain, pool[-1].domain] == [
        "outdoor",
        "indoor",
        "indoor",
        "outdoor",
    ]
    assert pool[1] is ScenePool(seed=77, views=3)[1]
    assert pool[0:2][1] is pool[1]
    assert scene_pool(77, 3)[1] is pool[1]
    assert len({scene.name for scene in pool}) == len(pool) == 5
    with pytest.raises(IndexError, match="out of range"):
        pool[5]


def test_no_photograph_is_in_two_splits():
    names = [n for split in ("train", "validation", "test") for n in photograph_names(split)]

    assert len(names) == len(set(names)) >= 5


def test_a_photograph_that_is_not_installed_is_left_out(monkeypatch):
    places = {**photographs._PLACES, "coffee": ("skimage", "data/gone.png", "indoor")}
    monkeypatch.setattr(photographs, "_PLACES", places)

    assert "coffee" not in photograph_names("train")


def test_photographs_have_positive_depth_of_their_size():
    for scene in photograph_scenes("test"):
        assert scene.depth.shape[1:] == scene.clear.shape[1:]
        assert bool((scene.depth > 0).all())
        assert bool(torch.isfinite(scene.depth).all())


def test_measured_depth_puts_the_motorcycle_before_the_wall():
    scene = next(s for s in photograph_scenes("train") if s.name == "motorcycle")

    wheel, wall = scene.depth[0, 400, 600].float(), scene.depth[0, 40, 230].float()
    assert wheel < wall


def test_drifting_haze_is_repeatable_and_lowers_contrast():
    scene = render_scene("outdoor", seed=2, size=SMALL)

    hazy = hazed_by_drift(scene, seed=3)

    assert torch.equal(hazy, hazed_by_drift(scene, seed=3))
    assert hazy.dtype == torch.uint8
    assert hazy.float().std() < scene.clear.float().std()


@settings(deadline=None, max_examples=40)
@given(
    height=st.integers(5, 90), width=st.integers(5, 90), half=st.booleans(), seed=st.integers(0, 99)
)
def test_a_window_of_any_image_has_the_side_of_the_crop(height, width, half, seed):
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    depth = torch.rand(1, max(1, height // 2), max(1, width // 2)) if half else torch.rand(1, 5, 5)
    window = random_window((height, width), 16, Dice(torch.Generator().manual_seed(seed)))

    cut = cut_window(image, window, 16, size=(height, width))

    assert cut.shape == (3, 16, 16)
    assert cut.min() >= 0
    assert cut.max() <= 1
    assert cut_window(depth, window, 16, size=(height, width)).shape == (1, 16, 16)


def test_depth_at_half_size_is_cut_at_the_same_place():
    ramp = torch.arange(64.0)[None, None].expand(1, 64, 64) / 64
    for seed in range(20):
        window = random_window((64, 64), 16, Dice(torch.Generator().manual_seed(seed)))
        full = cut_window(ramp, window, 16, size=(64, 64))
        half = cut_window(ramp[:, ::2, ::2], window, 16, size=(64, 64))
        assert (full - half).abs().max() < 0.06


def test_random_choices_are_repeatable():
    first, again = (Dice(torch.Generator().manual_seed(5)) for _ in range(2))
    draws = [
        (dice.uniform(0, 1), dice.integer(1, 6), dice.chance(0.5), dice.weighted([1, 2]))
        for dice in (first, again)
    ]
    assert draws[0] == draws[1]
