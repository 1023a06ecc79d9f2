"""The benchmark of how many photographs an adaptation takes adapts one student to each number."""

import pytest
from small_runs import BUILTIN_WEIGHTS

from benchmarks import photographs
from benchmarks.records import read_record
from coa_compress.errors import DataError
from coa_compress.tasks.images import list_images


@pytest.fixture
def data(tmp_path, images):
    """A folder of data with few photographs."""
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "real_hazy").symlink_to(images / "real")
    (tmp_path / "data" / "test").symlink_to(images / "test")
    return tmp_path / "data"


def bench(data, tmp_path, *counts):
    arguments = ["--data", str(data), "--work", str(tmp_path / "work"), "--counts"]
    return photographs._Bench(photographs._parsed([*arguments, *map(str, counts)]))


def test_a_number_of_photographs_is_spaced_over_all(data, tmp_path):
    made = bench(data, tmp_path, 3)

    few = made._photographs(3).removeprefix("builtin,")

    assert made._photographs(0) == "builtin"
    assert few == str(tmp_path / "work/photographs/3")
    assert [path.resolve() for path in list_images(tmp_path / "work/photographs/3")] == [
        made.found[len(made.found) * i // 3].resolve() for i in range(3)
    ]


def test_more_than_there_are_is_an_error(data, tmp_path):
    with pytest.raises(
        DataError, match=r"--counts 999 is more than the \d+ photographs of .*: ask"
    ):
        bench(data, tmp_path, 3, 999)


@pytest.mark.slow
@pytest.mark.skipif(not BUILTIN_WEIGHTS.is_file(), reason="the built-in teacher is not trained")
def test_rows_are_made_once_and_shown(data, tmp_path, capsys):
    file = tmp_path / "photographs.json"
    arguments = ["--quick", "--data", str(data), "--work", str(tmp_path / "work")]
    arguments += ["--json", str(file), "--counts", "0", "3"]

    photographs.main(arguments)
    shown = capsys.readouterr().out
    photographs.main(arguments)

    record = read_record(file)
    assert [(row["photographs"], row["seed"]) for row in record["rows"]] == [
        (None, 0),
        (0, 0),
        (3, 0),
    ]
    assert [row["gate"] is None for row in record["rows"]] == [True, False, False]
    assert photographs.render(record) in shown
    assert "not adapted, seed 0" in shown
    assert not capsys.readouterr().out
