"""Schedule, averaging, seeds and image losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import nn

from coa_compress.errors import DataError
from coa_compress.training.averaging import averaged_copy, decay_at, tensors_of, update_average_
from coa_compress.training.image_losses import charbonnier, frequency_l1, l1, psnr_loss, ssim_loss
from coa_compress.training.schedule import learning_rate_at
from coa_compress.training.seeds import repeatable, seed_of
from coa_compress.training.settings import TrainingSettings

quick = settings(deadline=None, max_examples=30)


@quick
@given(steps=st.integers(1, 60), warmup=st.integers(0, 80), final=st.floats(0.0, 1.0))
def test_the_rate_rises_then_falls_within_its_bounds(steps, warmup, final):
    plan = TrainingSettings(
        steps=steps, warmup_steps=warmup, learning_rate=1.0, final_learning_rate=final
    )
    rates = [learning_rate_at(step, plan) for step in range(steps)]
    top = rates.index(max(rates))

    assert max(rates) == pytest.approx(1.0)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0.0 <= rate <= 1.0 + 1e-12 for rate in rates)
    if steps > 2:
        assert rates[-1] == pytest.approx(final)


def test_the_average_is_the_sum_by_hand_for_weights_and_statistics():
    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    average = averaged_copy(model)
    with torch.no_grad():
        model[1].weight.fill_(1.0)
        average[1].weight.fill_(0.0)
    model[0].running_mean.fill_(4.0)
    model[0].num_batches_tracked.fill_(9)

    update_average_(average, model, 0.75)

    assert average[1].weight.item() == 0.25
    assert average[0].running_mean.item() == 1.0
    assert average[0].num_batches_tracked.item() == 9
    assert model[0].running_mean.item() == 4.0
    assert not any(tensor.requires_grad for _, tensor in tensors_of(average))
    assert decay_at(10_000, 0.9) == 0.9


def test_shared_parameters_are_averaged_once():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    model[1].weight = model[0].weight
    average = averaged_copy(model)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        average[0].weight.fill_(0.0)

    update_average_(average, model, 0.5)

    assert average[1].weight.item() == 0.5


def test_seeds_tell_names_and_numbers_apart_and_never_change():
    assert seed_of("step", "distill", 0, 0, 0) == 1216375944635629420
    assert len({seed_of(a, b) for a in ("a", "b", 1, "1") for b in (1, 11, "1", "11")}) == 16


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.3])
def test_ssim_equals_skimage(noise):
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(1, 3, 32, 40, generator=generator)
    noisy = (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(0, 1)
    reference = structural_similarity(
        clean[0].numpy().astype(np.float64),
        noisy[0].numpy().astype(np.float64),
        channel_axis=0,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert 1.0 - ssim_loss(noisy, clean).item() == pytest.approx(reference, abs=1e-5)


@pytest.mark.parametrize("loss", [l1, charbonnier, psnr_loss, ssim_loss, frequency_l1])
def test_image_losses_fall_along_their_gradient(loss):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2, 3, 16, 16, generator=generator)
    output = torch.rand(2, 3, 16, 16, generator=generator).requires_grad_()

    value = loss(output, target)
    (slope,) = torch.autograd.grad(value, output)

    assert value.shape == ()
    assert loss(output - 1e-3 * slope / slope.norm(), target) < value
    assert loss(target, target) <= value
    assert loss(output.detach().bfloat16(), target).dtype == torch.float32
    with pytest.raises(DataError, match=r"shapes differ: \(2, 3, 16, 16\) and \(1, 3, 16, 16\)"):
        loss(output, target[:1])


def test_images_smaller_than_the_ssim_window_are_an_error():
    with pytest.raises(DataError, match="at least 11 x 11"):
        ssim_loss(torch.zeros(1, 3, 10, 32), torch.zeros(1, 3, 10, 32))


def test_frequency_loss_ignores_shifts():
    image = torch.rand(1, 1, 8, 8)
    assert frequency_l1(image.roll(3, dims=-1), image) == pytest.approx(0.0, abs=1e-6)


def test_training_keeps_to_its_threads_and_gives_them_back():
    before = torch.get_num_threads()
    with repeatable(torch.device("cpu"), cpu_threads=1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
