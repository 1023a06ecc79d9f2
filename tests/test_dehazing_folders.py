import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coa_compress.errors import DataError
from coa_compress.tasks.dehazing.folders import read_folder, with_photographs, with_truth
from coa_compress.tasks.dehazing.sources import pair_example
from coa_compress.tasks.image_cache import ImageCache

SHARED = Path(__file__).parents[2] / "shared" / "data"


def put(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 99, dtype=np.uint8)).save(path)


def put_scene(root, name="a", row=None, size=(8, 6)):
    put(root / "clear" / f"{name}.png", size)
    put(root / "depth" / f"{name}.png", (4, 3))
    row = row or f"clear/{name}.png,depth/{name}.png,3.5,outdoor"
    (root / "index.csv").write_text(f"clear,depth,dmax,domain\n{row}\n")


@pytest.mark.parametrize(
    ("hazy", "truth"),
    [
        ("hazy/1.png", "gt/1.png"),
        ("hazy/1.jpg", "GT/1.png"),
        ("haze/1.png", "clear/1.png"),
        ("Hazy/1400_3.png", "gt/1400.png"),
        ("hazy/0011_0.95_0.16.jpg", "gt/0011.png"),
        ("hazy/0011_0.95_0.16.jpg", "gt/0011_0.95_0.16.png"),
        ("hazy/001_hazy.png", "GT/001_GT.png"),
        ("hazy/01_outdoor_hazy.jpg", "gt/01_outdoor_GT.jpg"),
        ("01_hazy.png", "01_GT.png"),
    ],
)
def test_pairs_are_found(tmp_path, hazy, truth):
    put(tmp_path / hazy)
    put(tmp_path / truth)

    (found,) = read_folder(tmp_path)

    (pair,) = found.pairs
    assert (pair.hazy, pair.clear) == (tmp_path / hazy, tmp_path / truth)
    assert found.photographs == ()


LAYOUTS = {
    "RESIDE ITS": ("hazy/1_1_0.90179.png hazy/1_2_0.97842.png", "clear/1.png", "trans/1_1.png"),
    "RESIDE OTS": (
        "hazy/part1/0001_0.8_0.2.jpg hazy/part2/0002_1_0.04.jpg",
        "clear/0001.jpg clear/0002.jpg",
        "depth/0001.mat",
    ),
    "OTS_BETA": ("haze/OTS/0005_0.8_0.04.jpg", "clear/clear_images/0005.jpg", ""),
    "SOTS": ("nyuhaze500/hazy/1400_1.png", "nyuhaze500/gt/1400.png", ""),
    "SOTS outdoor": ("outdoor/hazy/0001_0.8_0.2.jpg", "outdoor/gt/0001.png", ""),
    "RESIDE": ("SOTS/indoor/hazy/1400_1.png", "SOTS/indoor/gt/1400.png", "readme.txt"),
    "Haze4K": ("train/haze/1_0.74_1.78.png", "train/gt/1.png", "train/trans/1.png"),
    "Haze4K, repacked": ("IN/1_0.74_1.78.png", "GT/1.png", ""),
    "O-HAZE": ("hazy/01_outdoor_hazy.jpg", "GT/01_outdoor_GT.jpg", ""),
    "I-HAZE": ("hazy/01_indoor_hazy.jpg", "GT/01_indoor_GT.jpg", ""),
    "Dense-Haze": ("hazy/01_hazy.png", "GT/01_GT.png", ""),
    "NH-HAZE": ("01_hazy.png 02_hazy.png", "01_GT.png 02_GT.png", ""),
    "THaze": ("train/hazy/a.jpg", "train/clear/a.jpg", ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_standard_data_sets_are_read_as_they_come(tmp_path, name):
    hazy, truths, more = (part.split() for part in LAYOUTS[name])
    for file in (*hazy, *truths, *more):
        if file.endswith((".png", ".jpg")):
            put(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes(b"x")

    found = read_folder(tmp_path)

    pairs = [pair for part in found for pair in part.pairs]
    assert [pair.hazy for pair in pairs] == [tmp_path / file for file in hazy]
    assert {pair.clear for pair in pairs} == {tmp_path / file for file in truths}
    assert not any(part.photographs for part in found)


@pytest.mark.parametrize(
    "files",
    [
        ["JPEGImages/AM_Bing_211.png", "Annotations/AM_Bing_211.xml", "ImageSets/Main/test.txt"],
        ["1.jpg", "2.jpg"],
        ["hazy/1.jpg"],
    ],
    ids=["RTTS", "URHI, REAL_FOGGY", "hazy alone"],
)
def test_real_photographs_are_read_as_they_come(tmp_path, files):
    for file in files:
        if file.endswith((".png", ".jpg")):
            put(tmp_path / file)
        else:
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).write_bytes(b"x")

    (found,) = with_photographs(read_folder(tmp_path), tmp_path)

    assert list(found.photographs) == [tmp_path / f for f in files if f.endswith(("png", "jpg"))]


def test_the_border_of_a_truth_is_cut_off(tmp_path):
    put(tmp_path / "hazy" / "1_1.png", (30, 24))
    put(tmp_path / "gt" / "1.png", (50, 44))
    levels = np.zeros((44, 50, 3), dtype=np.uint8)
    levels[10:-10, 10:-10] = 200
    Image.fromarray(levels).save(tmp_path / "gt" / "1.png")

    (pair,) = read_folder(tmp_path)[0].pairs
    hazy, clear = pair_example(pair, ImageCache()).load()

    assert pair.border == 10
    assert hazy.shape == clear.shape == (3, 24, 30)
    assert clear.min() > 0.7


def test_the_longest_matching_name_wins(tmp_path):
    for name in ("hazy/a_1_2.png", "gt/a.png", "gt/a_1.png"):
        put(tmp_path / name)

    assert read_folder(tmp_path)[0].pairs[0].clear.name == "a_1.png"


def test_scenes_are_found(tmp_path):
    put_scene(tmp_path)

    (found,) = read_folder(tmp_path)

    (scene,) = found.scenes
    assert (scene.name, scene.dmax, scene.domain) == ("a", 3.5, "outdoor")


def test_a_folder_may_hold_several_layouts(tmp_path):
    put_scene(tmp_path)
    put(tmp_path / "pairs" / "hazy" / "x.png")
    put(tmp_path / "pairs" / "gt" / "x.png")
    put(tmp_path / "real" / "y.jpg")
    (tmp_path / "notes").mkdir()

    found = {part.path.name: part for part in read_folder(tmp_path)}

    assert set(found) == {tmp_path.name, "pairs", "real"}
    assert len(found[tmp_path.name].scenes) == 1
    assert len(found["pairs"].pairs) == 1
    assert found["real"].photographs == (tmp_path / "real" / "y.jpg",)
    assert len(with_truth(list(found.values()), tmp_path)) == 2
    assert len(with_photographs(list(found.values()), tmp_path)) == 1


def test_hazy_images_of_pairs_serve_as_photographs(tmp_path):
    put(tmp_path / "hazy" / "x.png")
    put(tmp_path / "gt" / "x.png")

    (found,) = with_photographs(read_folder(tmp_path), tmp_path)

    assert found.photographs == (tmp_path / "hazy" / "x.png",)


def test_a_hazy_folder_alone_is_photographs(tmp_path):
    put(tmp_path / "hazy" / "x.png")

    assert len(read_folder(tmp_path)[0].photographs) == 1


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda root: None, "no images in .*: found nothing; expected hazy/ and gt/"),
        (
            lambda root: [(root / f"{n}.mat").write_bytes(b"") for n in "abcdef"],
            r"found a.mat, b.mat, c.mat, d.mat and 2 more; expected hazy/ and gt/, clear/",
        ),
        (
            lambda root: put(root / "gt" / "1.png", (18, 26)) or put(root / "hazy" / "1.png"),
            r"sizes differ: .*1\.png is 8x6, .*1\.png is 18x26",
        ),
        (lambda root: put(root / "gt" / "1.png") or put(root / "hazy" / "2.png"), "no truth for"),
        (
            lambda root: put(root / "gt" / "1.png") or put(root / "hazy" / "1.png", (8, 7)),
            r"sizes differ: .*1\.png is 8x7, .*1\.png is 8x6: crop or resize one of them",
        ),
        (lambda root: put(root / "hazy" / "1.png") or (root / "gt").mkdir(), "no pairs in .*: 1"),
        (
            lambda root: put(root / "clear" / "1.png") or put(root / "depth" / "1.png"),
            r"no file .*index\.csv: it must list clear, depth, dmax, domain",
        ),
        (
            lambda root: put_scene(root, row="clear/a.png,depth/b.png,3,outdoor"),
            r"index\.csv:2 names .*b\.png, which does not exist",
        ),
        (
            lambda root: put_scene(root, row="clear/a.png,depth/a.png,far,outdoor"),
            r"index\.csv:2 has the dmax 'far': use a number above 0",
        ),
        (
            lambda root: put_scene(root, row="clear/a.png,depth/a.png,nan,outdoor"),
            "has the dmax 'nan'",
        ),
        (
            lambda root: put_scene(root, row="clear/a.png,depth/a.png,3,sea"),
            "has the domain 'sea': use outdoor or indoor",
        ),
        (lambda root: put_scene(root, row="clear/a.png"), r"index\.csv:2 names .*, which"),
        (lambda root: put_scene(root, size=(8, 20)), "aspects differ: .* is 8x20, .* is 4x3"),
        (
            lambda root: put_scene(root) or (root / "index.csv").write_text("clear,dmax\n"),
            r"no column depth in .*index\.csv",
        ),
        (
            lambda root: put_scene(root) or (root / "index.csv").write_bytes(b"\xff\xfe\x00"),
            r"cannot read .*index\.csv: not a table",
        ),
        (lambda root: (root / "a.jpg").write_bytes(b""), "the file is empty: replace or remove it"),
    ],
)
def test_an_unusable_folder_is_one_clear_line(tmp_path, prepare, reason):
    prepare(tmp_path)

    with pytest.raises(DataError, match=reason) as caught:
        read_folder(tmp_path)

    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*gone: give an existing folder of images"):
        read_folder(tmp_path / "gone")
    put(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no pairs in .*: only images without truth"):
        with_truth(read_folder(tmp_path), tmp_path)
    put_scene(tmp_path / "scenes")
    with pytest.raises(DataError, match=r"no hazy images in .*: expected image files"):
        with_photographs(read_folder(tmp_path / "scenes"), tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the development data")
def test_the_development_data_is_recognized_quickly():
    start = time.process_time()

    train = {part.path.name: part for part in read_folder(SHARED / "train")}
    test = {part.path.name: part for part in read_folder(SHARED / "test")}

    assert time.process_time() - start < 10
    assert len(train["train"].scenes) == 453
    assert len(train["real_pairs"].pairs) == 30
    assert len(train["real_hazy"].photographs) == 145
    assert {name: len(part.pairs) for name, part in test.items() if part.pairs} == {
        "real_pairs": 26,
        "sots_indoor": 25,
        "sots_outdoor": 40,
    }
