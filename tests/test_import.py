"""Importing has no effect: nothing heavy is loaded, nothing is started, names are as listed."""

import importlib
import pkgutil
import subprocess
import sys

import pytest

import coa_compress

HEAVY = (
    "torch",
    "torchmetrics",
    "lightning_fabric",
    "numpy",
    "PIL",
    "skimage",
    "sklearn",
    "scipy",
    "matplotlib",
    "pydantic",
    "fvcore",
    "thop",
    "coa_compress.tasks",
)


def in_fresh_interpreter(code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


def test_the_package_alone_loads_nothing_heavy_and_starts_nothing():
    loaded = in_fresh_interpreter(
        "import sys, threading, coa_compress; dir(coa_compress); coa_compress.__version__\n"
        "assert threading.active_count() == 1\n"
        "print(*sys.modules)"
    )

    assert "coa_compress" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_compressor_loads_no_task_no_image_library_and_starts_nothing():
    loaded = in_fresh_interpreter(
        "import sys, threading\n"
        "before = sys.stdout, sys.excepthook\n"
        "from coa_compress import Compressor, Result, load\n"
        "import logging, torch\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger('coa_compress').handlers\n"
        "assert (sys.stdout, sys.excepthook) == before\n"
        "assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()\n"
        "print(*sys.modules)"
    )

    unwanted = {"PIL", "skimage", "sklearn", "matplotlib", "coa_compress.tasks", "typer"}
    assert not unwanted & set(loaded)


def test_the_public_names_are_those_listed():
    assert dir(coa_compress) == sorted(coa_compress.__all__)
    for name in coa_compress.__all__:
        assert getattr(coa_compress, name) is not None
    public = {"Compressor", "Result", "fold", "load", "__version__"}
    assert set(coa_compress.__all__) == public


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Shrink'"):
        _ = coa_compress.Shrink


def test_every_module_can_be_imported_and_says_what_it_is():
    modules = [
        importlib.import_module(found.name)
        for found in pkgutil.walk_packages(coa_compress.__path__, "coa_compress.")
    ]

    assert len(modules) > 60
    assert [module.__name__ for module in modules if not module.__doc__] in (
        [],
        ["coa_compress._version"],
    )
