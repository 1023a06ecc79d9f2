import io
import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from coa_compress.errors import DataError, ModelError, SettingError
from coa_compress.profiling.modes import evaluating
from coa_compress.tasks.image_cache import ImageCache
from coa_compress.tasks.images import (
    image_size,
    list_images,
    read_image,
    read_levels,
    to_levels,
    write_image,
)
from coa_compress.tasks.tiling import Sizes, restore_image, sizes_of, spans


def pixels(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def as_tensor(array):
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "webp", "PNG"])
def test_a_lossless_file_is_read_exactly(tmp_path, suffix):
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(pixels()).save(path, **({"lossless": True} if suffix == "webp" else {}))

    image = read_image(path)

    assert image.dtype == torch.float32
    torch.testing.assert_close(image, as_tensor(pixels()), rtol=0, atol=0)
    assert image_size(path) == (6, 8)


def test_a_jpeg_is_read_nearly(tmp_path):
    path = tmp_path / "photo.jpg"
    flat = np.full((16, 16, 3), 90, dtype=np.uint8)
    Image.fromarray(flat).save(path)

    torch.testing.assert_close(read_image(path), as_tensor(flat), rtol=0, atol=0.01)


def test_16_bits_keep_their_precision(tmp_path):
    path = tmp_path / "deep.png"
    levels = np.array([[0, 1, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(path)

    image = read_image(path)

    assert image.shape == (3, 1, 4)
    torch.testing.assert_close(
        image[0, 0].double(), torch.tensor([0, 1, 32768, 65535]).double() / 65535, rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "photo.tif"
    Image.fromarray(pixels()).convert(mode).save(path)

    image = read_image(path)

    assert image.shape == (3, 6, 8)
    expected = np.asarray(Image.fromarray(pixels()).convert(mode).convert("RGB"))
    torch.testing.assert_close(image, as_tensor(expected.copy()), rtol=0, atol=0)


def test_a_palette_with_transparency_is_read(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels()).quantize(4).save(path, transparency=b"\x00\x80\xff\xff")

    assert read_image(path).shape == (3, 6, 8)


def test_alpha_is_dropped(tmp_path):
    path = tmp_path / "photo.png"
    image = Image.fromarray(pixels()).convert("RGBA")
    image.putalpha(0)
    image.save(path)

    torch.testing.assert_close(read_image(path), as_tensor(pixels()), rtol=0, atol=0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()).save(path, exif=exif)

    image = read_image(path)

    assert tuple(image.shape[1:]) == image_size(path)
    assert image_size(path) == ((6, 8) if orientation < 5 else (8, 6))
    if orientation == 6:
        expected = torch.rot90(as_tensor(pixels()), -1, dims=(1, 2))
        torch.testing.assert_close(image, expected, rtol=0, atol=0)


def test_gray_is_one_channel(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(pixels()).save(path)

    assert read_levels(path, gray=True).shape == (1, 6, 8)


def encoded(suffix):
    buffer = io.BytesIO()
    Image.fromarray(pixels(64, 64)).save(buffer, format=suffix)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "the file is empty"),
        ("text.jpg", b"no image at all", "not an image"),
        ("cut.png", encoded("PNG")[:600], "cannot read image"),
        ("cut.jpg", encoded("JPEG")[:600], "cannot read image"),
        ("broken.png", encoded("PNG")[:80] + b"\x00" * 3000, "cannot read image"),
    ],
)
def test_an_unusable_file_is_one_clear_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=reason) as caught:
        read_image(tmp_path / name)

    message = str(caught.value)
    assert name in message
    assert "replace or remove it" in message
    assert "\n" not in message


def test_values_outside_the_range_are_refused(tmp_path):
    path = tmp_path / "float.tif"
    Image.fromarray(np.array([[0.0, 7.5]], dtype=np.float32)).save(path)

    with pytest.raises(DataError, match="values outside 0 to 1: save it with 8 or 16 bits"):
        read_image(path)


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no image .*nothing\.png: give an existing file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"no folder .*nothing: give an existing folder"):
        list_images(tmp_path / "nothing")


def test_listing_skips_what_is_no_image(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()

    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]


def test_a_written_png_is_read_back(tmp_path):
    image = as_tensor(pixels())

    write_image(image, tmp_path / "out.png")

    torch.testing.assert_close(read_image(tmp_path / "out.png"), image, rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"choose a name that ends in \.jpeg, \.jpg, \.png"):
        write_image(as_tensor(pixels()), tmp_path / "out.gif")


def test_a_failed_write_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out.png"
    path.write_bytes(b"precious")

    def fail(self, file, **_options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(DataError, match="No space left on device"):
        write_image(as_tensor(pixels()), path)

    assert path.read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_levels_are_rounded_and_clamped():
    levels = to_levels(torch.tensor([-1.0, 0.499 / 255, 0.501 / 255, 3.0]))

    assert levels.tolist() == [0, 0, 1, 255]


def test_the_cache_stays_within_its_limit(tmp_path):
    for number in range(6):
        Image.fromarray(pixels(64, 64, number)).save(tmp_path / f"{number}.png")
    cache = ImageCache(limit_mb=3 * 64 * 64 * 3 / 2**20)

    for number in (0, 1, 2, 0, 3, 4, 0):
        expected = torch.from_numpy(pixels(64, 64, number)).permute(2, 0, 1)
        assert torch.equal(cache.read(tmp_path / f"{number}.png"), expected)
        assert cache.used_mb <= 3 * 64 * 64 * 3 / 2**20
    (tmp_path / "0.png").unlink()
    assert cache.read(tmp_path / "0.png").shape == (3, 64, 64)


def test_an_image_larger_than_the_cache_is_read(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    cache = ImageCache(limit_mb=1e-6)

    assert cache.read(tmp_path / "a.png").shape == (3, 6, 8)
    assert cache.used_mb == 0


@settings(deadline=None, max_examples=60)
@given(
    length=st.integers(1, 300), tile=st.integers(2, 60), share=st.floats(0, 0.99, allow_nan=False)
)
def test_tiles_cover_everything_and_overlap(length, tile, share):
    overlap = int(share * tile)

    found = spans(length, tile=tile, overlap=overlap)

    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(end - start == min(tile, length) for start, end in found)
    assert all(a[1] - b[0] >= overlap for a, b in itertools.pairwise(found))


@settings(deadline=None, max_examples=20)
@given(height=st.integers(9, 40), width=st.integers(9, 40), tile=st.integers(8, 16))
def test_tiles_of_a_pointwise_network_equal_the_whole(height, width, tile):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 3, 1)
    image = torch.rand(3, height, width)

    tiled = restore_image(model, image, tile=tile, overlap=3)

    whole = restore_image(model, image, tile=1000)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=1e-6)
    assert tiled.shape == image.shape


def test_the_result_is_clamped_and_modes_come_back():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
    model[1].eval()
    nn.init.constant_(model[1].bias, 9.0)

    restored = restore_image(model, torch.rand(3, 5, 7))

    assert restored.max() == 1
    assert (model.training, model[0].training, model[1].training) == (True, True, False)
    assert model[0].num_batches_tracked == 0


def test_modes_come_back_after_an_error():
    model = nn.Conv2d(3, 3, 1)
    with pytest.raises(ZeroDivisionError, match="division"), evaluating(model):
        _ = 1 / 0
    assert model.training


def test_the_dtype_of_the_network_is_followed():
    model = nn.Conv2d(3, 3, 1).double()

    assert restore_image(model, torch.rand(3, 5, 7)).dtype == torch.float32


def test_a_network_that_changes_the_size_is_refused():
    with pytest.raises(ModelError, match="give a network that keeps the size"):
        restore_image(nn.Conv2d(3, 3, 3), torch.rand(3, 8, 8))


@pytest.mark.parametrize(
    ("step", "size"), [(1, (5, 7)), (2, (5, 8)), (8, (17, 9)), (128, (70, 40))]
)
def test_images_are_padded_to_what_the_network_wants(step, size):
    model = nn.Sequential(nn.PixelUnshuffle(step), nn.PixelShuffle(step))
    image = torch.rand(3, *size)

    assert sizes_of(model) == Sizes(step, 1)
    assert torch.equal(restore_image(model, image), image)


class Tokens(nn.Module):
    """Forgets the height and takes the root of the number of pixels, as Uformer does."""

    def forward(self, image):
        side = int(image.shape[-1] * image.shape[-2]) ** 0.5
        tokens = nn.functional.pixel_unshuffle(image, 4).flatten(2)
        grid = tokens.view(*tokens.shape[:2], int(side) // 4, int(side) // 4)
        return nn.functional.pixel_shuffle(grid, 4)


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (13, 13), (8, 80)])
def test_images_are_padded_to_squares_where_the_network_takes_no_others(size):
    model, image = Tokens(), torch.rand(3, *size)

    assert sizes_of(model) == Sizes(4, 1, square=True)
    assert torch.equal(restore_image(model, image), image)
    in_tiles = restore_image(model, image, tile=24, overlap=4)
    torch.testing.assert_close(in_tiles, image, rtol=0, atol=1e-6)


def test_an_image_that_a_network_cannot_take_is_an_error_of_one_line():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 3))

    with pytest.raises(ModelError) as caught:
        restore_image(model, torch.rand(3, 8, 6))

    assert re.fullmatch(
        r"Sequential cannot take an image of \(3, 8, 6\) \(.*\): give a network that takes images "
        r"of any size",
        str(caught.value),
    )


def test_what_a_network_wants_is_tried_once():
    class Counting(nn.Identity):
        calls = 0

        def forward(self, image):
            self.calls += 1
            return image

    model = Counting()

    assert [sizes_of(model), sizes_of(model), model.calls] == [Sizes(1, 1), Sizes(1, 1), 1]


def test_a_network_that_rounds_sizes_down_or_keeps_none_is_found_out():
    halved = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2))

    assert sizes_of(halved) == Sizes(2, 1)
    assert sizes_of(nn.Conv2d(3, 3, 3)) == Sizes(1, 1)
    assert sizes_of(nn.Conv2d(4, 4, 1), channels=4) == Sizes(1, 1)


@pytest.mark.parametrize("tile", [9, 1000])
def test_an_image_may_become_larger_and_of_other_channels(tile):
    class Enlarging(nn.Module):
        def forward(self, image):
            gray = image.mean(dim=1, keepdim=True)
            return nn.functional.interpolate(gray, scale_factor=3, mode="nearest")

    image = torch.rand(3, 10, 25)

    restored = restore_image(Enlarging(), image, tile=tile, overlap=4)

    wanted = Enlarging()(image[None])[0]
    torch.testing.assert_close(restored, wanted, rtol=0, atol=1e-6)


def test_padding_of_a_larger_image_is_cut_off():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 48, 1), nn.PixelShuffle(4))

    assert sizes_of(model) == Sizes(2, 2)
    assert restore_image(model, torch.rand(3, 5, 8)).shape == (3, 10, 16)


class Hungry(nn.Module):
    """Has memory for so many pixels, and notes how many it was given."""

    def __init__(self, pixels):
        super().__init__()
        self.pixels, self.seen = pixels, []

    def forward(self, image):
        self.seen.append(image.shape[-2:].numel())
        if self.seen[-1] > self.pixels:
            message = "CUDA out of memory"
            raise torch.OutOfMemoryError(message)
        return image / 2


def test_an_image_that_does_not_fit_into_memory_is_given_in_smaller_tiles():
    image = torch.rand(3, 300, 500)
    net = Hungry(256 * 256)

    output = restore_image(net, image, tile=1024)

    torch.testing.assert_close(output, image / 2)
    assert max(net.seen[-2:]) <= 256 * 256
    with pytest.raises(torch.OutOfMemoryError):
        restore_image(Hungry(100), image)


def test_an_overlap_as_large_as_the_tile_is_refused():
    with pytest.raises(SettingError, match="overlap must be at least 0 and below the tile of 8"):
        restore_image(nn.Identity(), torch.rand(3, 8, 8), tile=8, overlap=8)
