# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The version is the same in the package, the changelog and the citation."""

import re
from pathlib import Path

import pyro_gumbel

ROOT = Path(__file__).parent.parent


def found(pattern, name):
    """What the first match in a file has in parentheses, or None."""
    match = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
    return match and match[1]


def released():
    """The date in the first heading of the changelog, or None before the release."""
    version, _, date = found("^## (.*)$", "CHANGELOG.md").partition(", ")
    assert version == pyro_gumbel.__version__
    return None if date == "unreleased" else date


def test_the_changelog_starts_with_the_version():
    date = released()
    assert date is None or re.fullmatch(r"\d{4}-\d\d-\d\d", date)


def test_the_citation_has_the_version_and_the_date_of_the_changelog():
    assert found("^version: (.*)$", "CITATION.cff") == pyro_gumbel.__version__
    assert found("^date-released: (.*)$", "CITATION.cff") == released()
