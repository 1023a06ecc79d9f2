"""FADE, NIQE and the dark-channel density: against other code, known values, and laws."""

import importlib
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.io import savemat
from scipy.ndimage import gaussian_filter, minimum_filter

from benchmarks.fit_measures import Moments
from benchmarks.fit_measures import main as fit_measures
from coa_compress.errors import DataError
from coa_compress.tasks.dehazing.dark_channel import dark_channel_density
from coa_compress.tasks.dehazing.fade import FEATURES, fade, fade_features
from coa_compress.tasks.dehazing.folders import read_folder
from coa_compress.tasks.dehazing.haze import add_haze, transmission
from coa_compress.tasks.dehazing.image_statistics import (
    fit_gaussian,
    gray_levels,
    levels,
    local_moments,
)
from coa_compress.tasks.dehazing.niqe import niqe, patch_features
from coa_compress.tasks.dehazing.no_reference import NoReference, no_reference
from coa_compress.tasks.dehazing.photographs import photograph_scenes
from coa_compress.tasks.dehazing.reference_statistics import (
    FADE_FILES,
    own_fade_parameters,
    own_niqe_reference,
    read_fade_parameters,
    read_niqe_reference,
)
from coa_compress.tasks.dehazing.simulated import hazed_by_drift
from coa_compress.tasks.images import list_images, read_image, write_image

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data")


def photograph(name="coffee"):
    scene = next(s for s in photograph_scenes("train") if s.name == name)
    return scene.clear.float() / 255, scene.depth.float()


def hazed(beta, name="coffee"):
    clear, depth = photograph(name)
    return add_haze(clear, transmission(depth, beta), torch.full((3,), 0.85))


def texture(seed=0, size=(120, 200)):
    noise = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise[None], 3, stride=1, padding=1)[0]


@pytest.mark.parametrize("name", ["coffee", "motorcycle", "flower"])
def test_every_haze_measure_rises_with_haze(name):
    measure = NoReference().measure
    found = [measure(hazed(beta, name)) for beta in (0.0, 0.7, 2.0)]

    for haze in ("fade", "dark_channel_density"):
        values = [values[haze] for values in found]
        assert values == sorted(values)
        assert values[-1] > 1.3 * values[0]


@settings(deadline=None, max_examples=8)
@given(height=st.integers(2, 70), width=st.integers(2, 70), seed=st.integers(0, 9))
def test_measures_are_finite_on_images_of_any_size(height, width, seed):
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))

    assert all(np.isfinite(v) and v >= 0 for v in NoReference().measure(image).values())


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_an_image_of_one_color_has_no_fade_and_the_other_measures(level):
    values = NoReference().measure(torch.full((3, 5, 40), level))

    assert np.isnan(values.pop("fade"))
    assert all(np.isfinite(value) for value in values.values())


def test_the_dark_channel_density_is_the_share_of_airlight():
    scene = torch.zeros(3, 64, 64)
    scene[:, :, ::4] = texture(size=(64, 16))
    airlight = torch.full((3, 1, 1), 0.8)

    for share in (0.25, 0.5):
        hazy = scene * (1 - share) + airlight * share
        hazy[:, :16, :] = airlight
        # all light of the sky is airlight; the pixels of patches that reach into it are not counted
        expected = (16 + 7 * share + (64 - 23) * share) / 64
        assert dark_channel_density(hazy) == pytest.approx(expected, abs=0.12)
    assert dark_channel_density(0.5 * hazy) == pytest.approx(dark_channel_density(hazy), abs=1e-5)


def test_the_dark_channel_equals_the_reference_implementation():
    image = texture(size=(40, 50))
    bright = torch.ones(3, 1, 50) * 0.8
    image = torch.cat([image * 0.7, bright.expand(3, 20, 50)], dim=1)
    darkest = minimum_filter(image.amin(0).numpy() / np.float32(0.8), 15, mode="nearest")

    # the airlight is the color of the rows of one color
    assert dark_channel_density(image) == pytest.approx(float(darkest.mean()), abs=1e-6)


@pytest.mark.parametrize("damage", ["noise", "blocks", "blur"])
def test_niqe_rises_with_damage(damage):
    clear, _ = photograph("motorcycle")
    small = torch.nn.functional.avg_pool2d(clear[None], 6)
    damaged = {
        "noise": clear + 0.2 * torch.randn(clear.shape, generator=torch.Generator().manual_seed(0)),
        "blocks": torch.nn.functional.interpolate(small, clear.shape[1:], mode="nearest")[0],
        "blur": torch.nn.functional.interpolate(small, clear.shape[1:], mode="bicubic")[0],
    }[damage]
    reference = own_niqe_reference()

    assert niqe(damaged, reference) > 1.1 * niqe(clear, reference)


def test_the_features_have_their_shapes():
    image = texture(size=(200, 300))
    features, sharpness = patch_features(image)

    assert features.shape == (6, 36)
    assert sharpness.shape == (6,)
    assert fade_features(image).shape == (25 * 37, len(FEATURES)) == (925, 12)


def test_simple_features_of_fade_follow_from_their_definition():
    image = levels(texture(size=(8, 16))) / 255
    found = fade_features(torch.cat([image, image], dim=1)).expm1()
    patch = image[:, :, :8].double()
    numbers = (gray_levels(255 * patch)).flatten().long()
    share = torch.bincount(numbers).double() / 64
    brightest, darkest = patch.amax(0), patch.amin(0)

    expected = {
        "entropy": -(share * share.clamp(min=1e-12).log2()).sum(),
        "dark channel": darkest.mean(),
        "saturation": ((brightest - darkest) / brightest).mean(),
    }
    for name, value in expected.items():
        assert found[0, FEATURES.index(name)].item() == pytest.approx(float(value))


def test_local_moments_equal_the_reference_implementation():
    gray = gray_levels(levels(texture()))
    mean, deviation = local_moments(gray)

    def blurred(values):
        return gaussian_filter(values, 7 / 6, mode="nearest", radius=3)

    array = gray.numpy()
    expected = np.sqrt(np.abs(blurred(array**2) - blurred(array) ** 2))
    np.testing.assert_allclose(mean.numpy(), blurred(array), rtol=1e-12)
    np.testing.assert_allclose(deviation.numpy(), expected, rtol=1e-8)


def peer_fade():
    """Return the FADE of fade-python, whose decoder of JPEG files is not needed here."""
    pytest.importorskip("numba")
    if find_spec("turbojpeg") is None:
        sys.modules["turbojpeg"] = types.ModuleType("turbojpeg")
    return pytest.importorskip("pyfade.core")


def test_fade_equals_an_independent_implementation(tmp_path):
    peer = peer_fade()
    own = own_fade_parameters()
    for name, kind, gaussian in zip(
        FADE_FILES, ("fogfree", "foggy"), (own.clear, own.foggy), strict=True
    ):
        values = {f"mu_{kind}param": gaussian.mean, f"cov_{kind}param": gaussian.covariance}
        savemat(tmp_path / name, {key: value.numpy() for key, value in values.items()})

    for image in (texture(), texture(1, (33, 70)), levels(hazed(0.7)) / 255):
        array = levels(image).permute(1, 2, 0).numpy().astype(np.uint8)
        expected = peer.fade_array(array, model_dir=tmp_path)
        # where a window is all of one level the peer has the rounding of MATLAB from a table
        assert fade(image, own) == pytest.approx(expected, rel=1e-3)
    features, _ = peer._extract_features(levels(texture()).permute(1, 2, 0).numpy().astype("uint8"))
    ours = fade_features(texture()).reshape(15, 25, 12).transpose(0, 1).reshape(-1, 12)
    np.testing.assert_allclose(ours.numpy(), features, rtol=1e-9, atol=1e-9)


def peer_niqe():
    """Return the NIQE of iqa-torch, without the parts of that package that need torchvision."""
    found = find_spec("iqa")
    if found is None or not found.submodule_search_locations:
        pytest.skip("iqa-torch is not installed")
    package = types.ModuleType("peer_niqe")
    package.__path__ = [str(Path(next(iter(found.submodule_search_locations))) / "niqe")]
    sys.modules["peer_niqe"] = package
    return importlib.import_module("peer_niqe.niqe_core")


@pytest.mark.parametrize("size", [(96, 200), (210, 310)])
def test_niqe_equals_an_independent_implementation(monkeypatch, size):
    peer = peer_niqe()
    image = texture(2, size)
    own = own_niqe_reference()
    window = peer.NIQE_PRIS_PARAMS["gaussian_window"]
    parameters = {
        "mu_pris_param": own.mean.numpy(),
        "cov_pris_param": own.covariance.numpy(),
        "gaussian_window": window,
    }
    monkeypatch.setattr(peer, "NIQE_PRIS_PARAMS", parameters)

    expected = peer._apply_niqe(gray_levels(levels(image)))

    assert niqe(image, own) == pytest.approx(expected, rel=1e-5)


def test_measures_are_repeatable_and_fast():
    image = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    measure = NoReference().measure
    first = measure(image)
    start = time.process_time()

    assert measure(image) == first
    assert time.process_time() - start < 4.0


def test_drifting_haze_is_seen_as_haze():
    scene = photograph_scenes("test")[0]
    measure = NoReference().measure
    hazy, clear = (
        measure(image.float() / 255) for image in (hazed_by_drift(scene, seed=1), scene.clear)
    )

    assert hazy["fade"] > clear["fade"]


def test_fitting_writes_what_is_read(tmp_path):
    for folder, beta in (("clear", 0.0), ("real_hazy", 1.0)):
        for number, name in enumerate(("coffee", "motorcycle")):
            write_image(hazed(beta, name)[:, :192, :288], tmp_path / f"d/{folder}/{number}.png")
    pairs = tmp_path / "d" / "real_pairs"
    for folder, beta in (("hazy", 1.0), ("gt", 0.0)):
        write_image(hazed(beta, "flower")[:, :192, :288], pairs / folder / "a.png")
    fit_measures([str(tmp_path / "d" / "real_pairs"), "--out", str(tmp_path / "out")])

    found = load_file(tmp_path / "out" / "reference_statistics.safetensors")
    clear = fade_features(read_image(pairs / "gt" / "a.png"))
    expected = fit_gaussian(clear[clear.isfinite().all(dim=1)])
    torch.testing.assert_close(found["fade_clear_mean"], expected.mean)
    torch.testing.assert_close(found["fade_clear_covariance"], expected.covariance)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 9))
def test_moments_in_parts_are_moments_of_the_whole(seed, cut):
    samples = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moments = Moments.empty(3)
    moments.add_(samples[:cut])
    moments.add_(torch.cat([samples[cut:], torch.full((1, 3), torch.nan, dtype=torch.float64)]))

    expected = fit_gaussian(samples)
    torch.testing.assert_close(moments.gaussian().mean, expected.mean)
    torch.testing.assert_close(moments.gaussian().covariance, expected.covariance)


def test_parameters_of_a_path_are_used_and_said(tmp_path):
    own = own_fade_parameters()
    for name, kind in zip(FADE_FILES, ("fogfree", "foggy"), strict=True):
        values = {
            f"mu_{kind}param": own.clear.mean.numpy(),
            f"cov_{kind}param": own.clear.covariance.numpy(),
        }
        savemat(tmp_path / name, values)
    np.savez(tmp_path / "n.npz", mu_pris_param=np.zeros((1, 36)), cov_pris_param=np.eye(36))
    savemat(tmp_path / "n.mat", {"mu_prisparam": np.zeros((1, 36)), "cov_prisparam": np.eye(36)})

    given = no_reference(str(tmp_path), str(tmp_path / "n.npz"))

    image = texture()
    distances = given.measure(image)["fade"]
    # both Gaussians are the same here
    assert 0 < distances < 1
    assert given.measure(image)["niqe"] != NoReference().measure(image)["niqe"]
    same = niqe(image, read_niqe_reference(tmp_path / "n.mat"))
    assert given.measure(image)["niqe"] == same
    assert "do not compare" in NoReference().explanations["fade"]
    assert "do not compare" not in given.explanations["fade"] + given.explanations["niqe"]
    assert given.digest() != NoReference().digest()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, r"no file .*n\.npz: give the NIQE parameters, or null for those built in"),
        (b"", r"cannot read NIQE parameters from .*n\.npz .*mu_pris_param and cov_pris_param"),
        (b"PK\x03\x04 cut", "cannot read NIQE parameters from"),
        ({"mu": np.zeros(36)}, "cannot read NIQE parameters from .*KeyError"),
        (
            {"mu_pris_param": np.zeros(12), "cov_pris_param": np.eye(12)},
            r"have shapes \(12,\) and \(12, 12\): 36 features are needed",
        ),
        (
            {"mu_pris_param": np.zeros(36), "cov_pris_param": np.full((36, 36), np.nan)},
            "the covariance must be finite and symmetric",
        ),
        (
            {"mu_pris_param": np.zeros(36), "cov_pris_param": np.array(["a"])},
            "cannot read NIQE parameters",
        ),
    ],
)
def test_a_wrong_file_of_niqe_is_one_clear_line(tmp_path, content, match):
    path = tmp_path / "n.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    with pytest.raises(DataError, match=match):
        read_niqe_reference(path)


def test_a_wrong_folder_of_fade_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match=r"no file .*fogfree.*: give the FADE parameters, or null"):
        read_fade_parameters(tmp_path)
    for name in FADE_FILES:
        (tmp_path / name).write_bytes(b"MATLAB 5.0" + bytes(300))
    with pytest.raises(DataError, match=r"cannot read FADE parameters from .*mu_fogfreeparam"):
        read_fade_parameters(tmp_path)
    (tmp_path / "n.txt").write_text("x")
    with pytest.raises(DataError, match=r"it must be one of \.npz, \.mat"):
        read_niqe_reference(tmp_path / "n.txt")


@pytest.mark.shared
@needs_data
@pytest.mark.parametrize("folder", ["test/real_hazy", "test/sots_outdoor/gt"])
def test_the_original_parameters_give_the_values_of_the_peer(folder):
    peer = peer_fade()
    parameters = read_fade_parameters(SHARED / "iqa")

    for path in list_images(SHARED / folder)[::12]:
        image = read_image(path)
        array = levels(image).permute(1, 2, 0).numpy().astype(np.uint8)
        assert fade(image, parameters) == pytest.approx(peer.fade_array(array), abs=0.003)


@pytest.mark.shared
@needs_data
@pytest.mark.parametrize("split", ["sots_indoor", "sots_outdoor", "real_pairs"])
def test_haze_measures_rank_held_out_pairs(split):
    (found,) = read_folder(SHARED / "test" / split)
    measure = NoReference().measure
    values = [
        [measure(read_image(path)) for path in (pair.hazy, pair.clear)] for pair in found.pairs[::6]
    ]

    for name in ("fade", "dark_channel_density"):
        assert np.mean([hazy[name] > clear[name] for hazy, clear in values]) >= 0.8
