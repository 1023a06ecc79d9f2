"""What guides the adaptation to real haze: priors, labels, haze put back, words."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coa_compress.errors import SettingError, WeightsError
from coa_compress.tasks.dehazing.guidance.labels import LABELS
from coa_compress.tasks.dehazing.guidance.priors import PRIORS
from coa_compress.tasks.dehazing.guidance.prompts import learn_prompts, load_prompts, save_prompts
from coa_compress.tasks.dehazing.guidance.rehazing import haze_again, scattering
from coa_compress.tasks.dehazing.guidance.sky import sky_likeness
from coa_compress.tasks.dehazing.guidance.text import direction_loss, prompt_logits, prompt_loss
from coa_compress.tasks.dehazing.guidance.words import priors_of, text_priors
from coa_compress.tasks.dehazing.settings import DehazingSettings


def generator_of(seed=0):
    return torch.Generator().manual_seed(seed)


def textured(seed=0, side=48):
    coarse = torch.rand(2, 3, side // 4, side // 4, generator=generator_of(seed))
    return nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")


def hazed(clear, passed=0.5, airlight=0.9):
    return clear * passed + airlight * (1 - passed)


@pytest.mark.parametrize("name", PRIORS)
def test_every_prior_is_a_scalar_from_zero_with_a_finite_gradient(name):
    real = hazed(textured())
    output = textured(1).requires_grad_()

    loss = PRIORS[name](output, real)
    loss.backward()

    assert loss.ndim == 0
    assert loss.item() >= 0
    assert output.grad.isfinite().all()


@pytest.mark.parametrize("name", ["dark_channel", "attenuation", "contrast"])
def test_haze_raises_the_priors_against_it(name):
    clear = textured()
    real = hazed(clear, 0.3)

    values = [PRIORS[name](hazed(clear, t), real).item() for t in (1.0, 0.8, 0.5, 0.3)]

    assert values == sorted(values)
    assert values[0] < values[-1]


def test_the_bright_channel_opposes_darkness():
    clear = textured()
    loss = PRIORS["bright_channel"]
    assert loss(clear, clear) < loss(0.3 * clear, clear)


def test_total_variation_counts_noise_where_the_input_is_flat():
    flat, noise = torch.full((1, 3, 16, 16), 0.5), 0.1 * torch.randn(1, 3, 16, 16)
    loss = PRIORS["total_variation"]
    assert loss(flat, flat) == 0
    assert loss(flat + noise, flat) > 5 * loss(textured()[:1, :, :16, :16] + noise, noise * 10)


def test_sky_is_smooth_bright_and_high():
    image = textured()
    image[:, :, :20] = torch.tensor([0.85, 0.88, 0.92])[:, None, None]

    likeness = sky_likeness(image)

    assert likeness[:, :, 6:14].min() > 0.5
    assert likeness[:, :, 30:].max() < 0.1
    dark = image.clone()
    dark[:, :, :20] -= 0.4
    assert PRIORS["sky"](image, image) == 0
    assert PRIORS["sky"](dark, image) > 0.05
    ground = image.clone()
    ground[:, :, 30:] -= 0.4
    assert PRIORS["sky"](ground, image) < 0.01


@settings(deadline=None, max_examples=15)
@given(passed=st.floats(0.3, 0.95), airlight=st.floats(0.5, 1.0))
def test_even_haze_is_found_again(passed, airlight):
    clear = textured()

    found, light = scattering(clear, hazed(clear, passed, airlight))

    assert abs(found.mean().item() - passed) < 0.03
    assert abs(light.mean().item() - airlight * (1 - passed)) < 0.03


def test_haze_put_back_has_the_color_that_was_seen_and_depends_on_the_generator_alone():
    clear = textured()
    real = clear * 0.5 + 0.5 * torch.tensor([0.9, 0.8, 0.6])[:, None, None]

    again, same, other = (haze_again(clear, real, generator_of(s)) for s in (1, 1, 2))

    assert torch.equal(again, same)
    assert not torch.equal(again, other)
    assert again.min() >= 0
    assert again.max() <= 1
    added = (again - clear).mean(dim=(0, 2, 3))
    assert added[0] > added[1] > added[2]


@pytest.mark.parametrize("name", LABELS)
def test_every_label_is_an_image_and_goes_further_than_the_network(name):
    clear = textured()
    real = hazed(clear, 0.4)

    class Half(nn.Module):
        def forward(self, image):
            return image + 0.5 * (image - 0.9)

    with torch.no_grad():
        label = LABELS[name](Half(), real, Half()(real))

    assert label.shape == real.shape
    assert label.min() >= 0
    assert label.max() <= 1
    assert label.std() > Half()(real).std()


class Words(nn.Module):
    """A tiny encoder: mean color in a small space; a text is the sum of its letters."""

    width = 5

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.color, self.token = nn.Linear(6, 7), nn.Linear(5, 7)
        self.requires_grad_(requires_grad=False)

    def images(self, images):
        return self.color(torch.cat([images.mean(dim=(2, 3)), images.std(dim=(2, 3))], dim=1))

    def texts(self, prompts):
        letters = torch.tensor([[p.count(c) for c in "aeiou"] for p in prompts])
        return self.token(letters.float())

    def tokens(self, contexts):
        return self.token(contexts.mean(dim=1))


def test_the_direction_is_from_zero_to_two_and_has_a_gradient():
    real, output = hazed(textured()), textured().requires_grad_()

    loss = direction_loss(Words())(output, real)
    loss.backward()

    assert 0 <= loss <= 2
    assert output.grad.isfinite().all()
    assert output.grad.any()


def test_an_output_that_has_not_moved_has_no_direction():
    real = hazed(textured())
    assert direction_loss(Words())(real.clone(), real).item() == pytest.approx(1.0)


def drawing(*, haze):
    def draw(generator):
        images = torch.rand(4, 3, 8, 8, generator=generator)
        return hazed(images, 0.3) if haze else images

    return draw


def test_learned_prompts_tell_hazy_from_clear(tmp_path):
    encoder = Words()

    contexts = learn_prompts(encoder, drawing(haze=True), drawing(haze=False), length=3, steps=80)
    again = learn_prompts(encoder, drawing(haze=True), drawing(haze=False), length=3, steps=80)
    save_prompts(tmp_path / "prompts.safetensors", contexts, encoder="words")
    loaded = load_prompts(tmp_path / "prompts.safetensors", width=5)

    assert torch.equal(contexts, again)
    assert torch.equal(contexts, loaded)
    clear = textured()
    hazy = hazed(clear, 0.3)
    loss = prompt_loss(encoder, contexts)
    assert loss(hazy, hazy) > 0.9
    assert loss(clear, hazy) < 0.1
    logits = prompt_logits(encoder.images(hazy), encoder.tokens(contexts))
    assert (logits.argmax(dim=1) == 0).all()
    assert set(priors_of(encoder, str(tmp_path / "prompts.safetensors"))) == {
        "clip_direction",
        "clip_prompts",
    }


def test_prompts_that_cannot_be_used_are_errors(tmp_path):
    path = tmp_path / "prompts.safetensors"
    with pytest.raises(WeightsError, match="cannot read prompts"):
        load_prompts(path, width=5)
    save_prompts(path, torch.zeros(2, 3, 4), encoder="words")
    with pytest.raises(WeightsError, match=r"shape \(2, 3, 4\), and this encoder needs"):
        load_prompts(path, width=5)


def test_without_open_clip_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(SettingError, match=r"pip install 'coa-compress\[clip\]'"):
        text_priors("ViT-B-32:laion2b_s34b_b79k")


def test_prompts_need_an_encoder():
    with pytest.raises(SettingError, match="clip_prompts is 'a' without the encoder"):
        DehazingSettings(clip_prompts="a")
