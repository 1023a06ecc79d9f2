"""Folders of images to restore, as data sets come and as they must not be."""

import numpy as np
import pytest
from PIL import Image

from coa_compress.errors import DataError
from coa_compress.tasks.restoration.folders import read_images


def put(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 99, dtype=np.uint8)).save(path)


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("input/1.png", "target/1.png"),
        ("lq/1.jpg", "GT/1.png"),
        ("LQ/a b.png", "HQ/a b.png"),
        ("low/23.png", "high/23.png"),
        ("blur/000001.png", "sharp/000001.png"),
        ("rain/norain-001x2.png", "norain/norain-001.png"),
        ("rain/rain-001.png", "norain/norain-001.png"),
        ("noisy/x_1.png", "clean/x_1.png"),
        ("DIV2K_train_LR_bicubic/X4/0801x4.png", "DIV2K_train_HR/0801.png"),
        ("input_crops/0001_NOISY_SRGB_010.PNG", "target_crops/0001_GT_SRGB_010.PNG"),
        ("0001_NOISY_SRGB_010.PNG", "0001_GT_SRGB_010.PNG"),
        ("hazy/1400_3.png", "gt/1400.png"),
        ("GOPR0372/blur/1.png", "GOPR0372/sharp/1.png"),
    ],
)
def test_pairs_are_found(tmp_path, given, target):
    put(tmp_path / given)
    put(tmp_path / target)

    (found,) = read_images(tmp_path)

    assert (found.input, found.target, found.scale) == (tmp_path / given, tmp_path / target, 1)
    assert found.size == (6, 8)


def test_the_name_as_it_is_goes_before_the_name_without_words(tmp_path):
    for name in ("low_1.png", "high_1.png"):
        put(tmp_path / "input" / name)
        put(tmp_path / "target" / name)

    found = read_images(tmp_path)

    assert [image.input.name for image in found] == [image.target.name for image in found]


def test_a_folder_named_by_the_word_alone_goes_before_others(tmp_path):
    for folder in ("blur", "blur_gamma", "sharp"):
        put(tmp_path / "GOPR0372_07_00" / folder / "000047.png")

    (found,) = read_images(tmp_path)

    assert found.input.parent.name == "blur"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_targets_may_be_larger(tmp_path, scale):
    put(tmp_path / "LR" / f"1x{scale}.png")
    put(tmp_path / "HR" / "1.png", (8 * scale, 6 * scale))

    assert [image.scale for image in read_images(tmp_path)] == [scale]


@pytest.mark.parametrize("names", ["a.png b.jpg", "rain/a.png rain/b.png", "x/a.png y/b.png"])
def test_images_alone_have_no_target(tmp_path, names):
    for name in names.split():
        put(tmp_path / name)

    found = read_images(tmp_path)

    assert [image.name for image in found] == ["a", "b"]
    assert {image.target for image in found} == {None}
    assert [image.files for image in found] == [(image.input,) for image in found]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "no images in {at}: found nothing; expected input/ and target/, or image files"),
        ({"input/1.png": (8, 6), "target/2.png": (8, 6)}, "no target for {at}/input/1.png in"),
        ({"input/1.png": (8, 6), "target/1.png": (9, 6)}, "1.png is 8x6, {at}/target/1.png is 9x6"),
        ({"input/1.png": (8, 6), "target/1.png": (4, 3)}, "a whole number of times larger"),
        (
            {"input/1.png": (8, 6), "target/gt_1.png": (8, 6), "target/clean_1.png": (8, 6)},
            "clean_1.png and {at}/target/gt_1.png could both be the target of {at}/input/1.png",
        ),
        (
            {"LR_bicubic/1.png": (8, 6), "LR_unknown/1.png": (8, 6), "HR/1.png": (8, 6)},
            "LR_bicubic/ and LR_unknown/ in {at} are of one kind: keep one",
        ),
        (
            {"a/lq/1.png": (8, 6), "a/gt/1.png": (8, 6), "b/2.png": (8, 6)},
            "{at}/a/lq/1.png has a target and {at}/b/2.png has none: name folders of one kind",
        ),
        (
            {f"{s}/{k}/1.png": (8 * n, 6 * n) for s, k, n in
             [(1, "lr", 1), (1, "hr", 2), (2, "lr", 1), (2, "hr", 4)]},
            "the target of {at}/2/lr/1.png is 4 times larger, and that of {at}/1/lr/1.png 2 times",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path, files, expected):
    for name, size in files.items():
        put(tmp_path / name, size)

    with pytest.raises(DataError) as caught:
        read_images(tmp_path)

    assert expected.format(at=tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_inputs_without_any_target_say_so(tmp_path):
    put(tmp_path / "input" / "1.png")
    (tmp_path / "target").mkdir()

    with pytest.raises(DataError, match="1 inputs and 0 targets: add both"):
        read_images(tmp_path)


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*gone: give an existing folder of images"):
        read_images(tmp_path / "gone")
