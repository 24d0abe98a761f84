# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How the examples become tutorials: their order, options, pictures and downloads."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst

os.environ["TQDM_DISABLE"] = "1"  # no progress bars on the pages

# In the order of the gallery, with the options of a short training, for DOCS_FAST=1.
EXAMPLES = {
    "digits_vae": "--steps 200",
    "relax_a_model": "--steps 20 --most 10",
    "mixture": "--steps 50",
    "hidden_markov": "--steps 10 --months 4",
    "topics": "--steps 10",
    "count_vae": "--steps 50",
    "semi_supervised": "--steps 50",
    "spike_and_slab": "--steps 50",
    "sparse_gates": "--steps 50",
    "feature_selection": "--steps 50",
    "ranking": "--steps 100",
    "experts": "--steps 50",
    "nuts": "--steps 20",
    "choose_an_estimator": "--steps 20 --samples 20 --temperatures 0.5",
    "distributed_vae": "--steps 100",
    "lightning_vae": "--steps 100",
}


# Of full trainings: shorter than those of the programs, since `digits_vae` shows the same VAE.
SHORTER = {"distributed_vae": "--steps 1000", "lightning_vae": "--steps 1000"}


def forget_stale(app: Sphinx) -> None:
    """Remove the tutorials if what made them has changed, so that all are made again.

    Sphinx-Gallery itself looks for changes of the examples only. A change of the package counts in
    a full build. It does not with DOCS_FAST=1, which is for work on the pages.
    """
    root = Path(app.srcdir).parent
    code = [root / "docs" / "gallery.py", root / "examples" / "options.py"]
    if not os.environ.get("DOCS_FAST"):
        code += sorted((root / "pyro_gumbel").rglob("*.py"))
    hashes = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" for path in code]
    made_by, stamp = "\n".join(hashes), Path(app.srcdir, "tutorials", "made_by")
    if not stamp.exists() or stamp.read_text() != made_by:
        if stamp.parent.exists():
            shutil.rmtree(stamp.parent)
        stamp.parent.mkdir()
        stamp.write_text(made_by)


def place(name: str) -> int:
    """Of an example among the others."""
    return list(EXAMPLES).index(Path(name).stem)


def arguments_of(_: dict[str, Any], variables: dict[str, Any]) -> list[str]:
    """The options of an example."""
    return options_of(variables).split()


def options_of(variables: dict[str, Any]) -> str:
    name = Path(variables["src_file"]).stem
    return EXAMPLES[name] if os.environ.get("DOCS_FAST") else SHORTER.get(name, "")


SHORT = """
.. note::

   This is a shortened run, with ``{}``. The text describes the run without these options.

"""


def pictures_of(_: Any, variables: dict[str, Any], conf: dict[str, Any]) -> str:
    """Take the picture that an example has written beside itself, for its page.

    It comes before the output. A note before both tells that a run is shortened.
    """
    written = Path(variables["src_file"]).with_suffix(".png")
    if not written.exists():
        return ""
    picture = next(variables["image_path_iterator"])
    written.replace(picture)
    options = options_of(variables)
    note = SHORT.format(options) if options else ""
    return note + figure_rst([picture], conf["src_dir"])


SHARED = """
    .. container:: sphx-glr-download sphx-glr-download-python

      :download:`Download options.py, to put beside it <../../examples/options.py>`
"""


def offer_what_is_shared(_: Sphinx, page: str, source: list[str]) -> None:
    """Add the module that the examples share to the downloads, which end a tutorial."""
    if page.startswith("tutorials/") and "\n    from options import" in source[0]:
        source[0] += SHARED
