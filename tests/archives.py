# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The wheel and the sdist in `dist`. `make dist` builds them and runs this.

It is run by its name only, since it is about files that the other tests do not need.
"""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

import pyro_gumbel
from tests.test_readme import ROOT, readme_example
from tests.test_version import released

(WHEEL,) = ROOT.glob("dist/*.whl")
(SDIST,) = ROOT.glob("dist/*.tar.gz")
NAME = f"pyro_gumbel-{pyro_gumbel.__version__}"
NOT_IN_THE_SDIST = r"\.(ci|github)/|\.pre-commit-config\.yaml$"


needs_git = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")


def tracked(folder="."):
    """The files that git has."""
    any_owner = ["-c", "safe.directory=*"]  # of the clone
    command = ["git", *any_owner, "ls-files", "-z", folder]
    return set(subprocess.check_output(command, cwd=ROOT, text=True).split("\0")[:-1])


@needs_git
def test_the_wheel_is_the_package_and_its_metadata():
    names = zipfile.ZipFile(WHEEL).namelist()
    files = {name for name in names if not name.startswith(f"{NAME}.dist-info/")}
    assert files == tracked("pyro_gumbel")
    assert "pyro_gumbel/py.typed" in files


@needs_git
def test_the_sdist_has_what_git_has():
    with tarfile.open(SDIST) as archive:
        files = set(archive.getnames())
    expected = {name for name in tracked() if not re.match(NOT_IN_THE_SDIST, name)}
    assert files == {f"{NAME}/{name}" for name in expected | {"PKG-INFO"}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-index", "--target", folder, WHEEL], check=True)
    return folder


def test_the_metadata(installed):
    (found,) = distributions(path=[str(installed)])
    assert found.version == pyro_gumbel.__version__
    assert found.metadata["License-Expression"] == "Apache-2.0"
    needed = [line for line in found.requires if "extra ==" not in line]
    assert [re.match(r"[\w-]+", line)[0] for line in needed] == ["pyro-ppl", "torch"]


@pytest.mark.skipif(released() is None, reason="is about a release")
def test_the_description_has_public_addresses(installed):
    """An index shows it, where relative links lead nowhere."""
    (found,) = distributions(path=[str(installed)])
    assert found.metadata.get_all("Project-URL")
    assert re.findall(r"\]\((?!https://)[^)]*\)", found.metadata.get_payload()) == []


WITHOUT_THE_CLONE = f"""
import sys
sys.path = [folder for folder in sys.path if folder != {str(ROOT)!r}]
"""
WHERE = """
print({module.__file__ for name, module in sys.modules.items() if name.startswith("pyro_gumbel")})
"""


def test_the_example_runs_by_the_wheel_alone(installed, tmp_path):
    """In a process of its own, beside the dependencies that are in this environment."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_THE_CLONE + readme_example() + WHERE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    files = map(Path, eval(done.stdout))
    assert all(file.is_relative_to(installed) for file in files)
