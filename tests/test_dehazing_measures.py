import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from coa_compress.errors import DataError
from coa_compress.tasks.dehazing.guidance.priors import PRIORS
from coa_compress.tasks.dehazing.haze import add_haze, transmission
from coa_compress.tasks.dehazing.losses import RESTORATION_LOSSES
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.measures import in_8_bits, psnr_db, ssim


def photograph(name="coffee"):
    scene = next(s for s in photograph_scenes("train") if s.name == name)
    return scene.clear.float() / 255, scene.depth.float()


def hazed(beta, name="coffee"):
    clear, depth = photograph(name)
    return add_haze(clear, transmission(depth, beta), torch.full((3,), 0.85))


def pair(seed, size=(24, 31)):
    generator = torch.Generator().manual_seed(seed)
    clear = torch.rand(1, 3, *size, generator=generator)
    noise = torch.randn(1, 3, *size, generator=generator)
    return (clear + 0.1 * noise).clamp(0, 1), clear


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_fidelity_equals_the_reference_implementation(seed):
    restored, clear = pair(seed)
    arrays = [image[0].permute(1, 2, 0).double().numpy() for image in (clear, restored)]

    expected_ssim = structural_similarity(
        *arrays,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=2,
    )
    assert float(psnr_db(restored, clear)) == pytest.approx(
        peak_signal_noise_ratio(*arrays, data_range=1.0), abs=1e-3
    )
    assert float(ssim(restored, clear)) == pytest.approx(expected_ssim, abs=1e-4)


def test_fidelity_is_per_image():
    first, second = pair(1), pair(2)
    both = [torch.cat(images) for images in zip(first, second, strict=True)]

    for measure in (psnr_db, ssim):
        expected = torch.cat([measure(*first), measure(*second)])
        torch.testing.assert_close(measure(*both), expected)


def test_a_noise_of_known_power_has_a_known_psnr():
    assert float(psnr_db(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.01))) == pytest.approx(
        40.0, abs=1e-4
    )


def test_fidelity_of_unequal_or_tiny_images_is_refused():
    with pytest.raises(DataError, match="cannot compare shapes"):
        psnr_db(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(DataError, match="ssim needs 11 x 11 pixels"):
        ssim(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))


def test_8_bits_are_256_levels():
    levels = in_8_bits(torch.linspace(-0.2, 1.2, 4000)) * 255

    assert len(levels.unique()) == 256
    torch.testing.assert_close(levels, levels.round())


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(16, 16), (40, 50), (13, 9)]))
def test_priors_are_scalars_from_zero_with_gradients(seed, size):
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(2, 3, *size, generator=generator)
    output = (1.4 * torch.rand(2, 3, *size, generator=generator) - 0.2).requires_grad_()

    losses = {name: prior(output, real) for name, prior in PRIORS.items()}

    assert set(losses) >= {"dark_channel", "saturation", "rehaze", "color"}
    for loss in losses.values():
        assert loss.ndim == 0
        assert loss >= 0
    sum(losses.values()).backward()
    assert bool(torch.isfinite(output.grad).all())
    assert output.grad.abs().sum() > 0


def test_doing_nothing_costs_only_the_dark_channel():
    real = hazed(1.0)[None, :, :96, :96]

    losses = {name: prior(real, real) for name, prior in PRIORS.items()}

    assert losses["saturation"] == losses["color"] == 0
    assert losses["rehaze"] < 0.02
    assert losses["dark_channel"] > 0.3


def test_the_truth_pleases_every_prior_and_a_fake_does_not():
    clear, _ = photograph()
    real, clear = hazed(0.7)[None, :, :192, :192], clear[None, :, :192, :192]
    invented = clear.flip(3)

    assert PRIORS["dark_channel"](clear, real) < 0.5 * PRIORS["dark_channel"](real, real)
    assert PRIORS["rehaze"](clear, real) < 0.5 * PRIORS["rehaze"](invented, real)
    assert PRIORS["color"](clear * torch.tensor([1, 0.2, 0.2]).view(3, 1, 1), real) > 0.2
    assert PRIORS["saturation"](torch.full_like(real, 1.5), real) > 0.4


def test_losses_are_zero_for_the_truth_only():
    restored, clear = pair(3)

    assert all(abs(float(loss)) < 1e-5 for loss in _losses(clear, clear).values())
    worse = _losses(restored, clear)
    assert set(worse) == {"l1", "ssim", "psnr", "frequency", "low_frequency"}
    assert all(loss > 0 for loss in worse.values())


def test_low_frequency_ignores_zero_mean_detail():
    board = torch.ones(1, 3, 16, 16)
    board[..., ::2] = -1

    losses = _losses(0.5 + 0.1 * board, torch.full((1, 3, 16, 16), 0.5))

    assert losses["l1"] == pytest.approx(0.1, abs=1e-6)
    assert losses["low_frequency"] < 1e-6


def _losses(output, target):
    return {name: loss(output, target) for name, loss in RESTORATION_LOSSES.items()}
