"""The benchmark of the refit, on few and small crops."""

import json

from benchmarks import refit


def test_rows_are_made_once_and_a_refit_brings_the_student_closer(tmp_path, capsys):
    path = tmp_path / "refit.json"

    refit.main(["--quick", "--json", str(path)])
    shown = capsys.readouterr().out
    first = json.loads(path.read_text())
    refit.main(["--quick", "--json", str(path)])
    again = json.loads(path.read_text())

    cut, fitted = first["rows"]
    assert (cut["images"], fitted["images"], fitted["positions"]) == (0, 8, 256)
    assert cut["macs"] == fitted["macs"] <= 0.25
    assert fitted["to_teacher_db"] > cut["to_teacher_db"]
    assert again["rows"] == first["rows"]
    assert "| no refit |" in shown
    assert "| 8 | 256 |" in shown
