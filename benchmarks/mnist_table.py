# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The table of estimators on the grey MNIST VAE, from the files that `mnist_vae.py` has written.

    python benchmarks/mnist_table.py benchmarks/mnist_vae/*.json

A row has the mean -ELBO in nats per image at some epochs of training, at the last one with the
standard deviation over seeds, and that of the test images; beside it what was published for that
epoch, or for the nearest one before it: means of 10 seeds in an independent reproduction of Liu et
al. (2023). Lower is better. The last column is the median processor time of an epoch, in seconds,
which other work on the machine changes little; on a GPU it is not given. The files have the time
by the clock too. Files of one shape, estimator and number of epochs, with other seeds each, are one
row. Under the table stands what each seed of "proposed" was trained with.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

TIMES = "processor seconds an epoch"
EPOCHS = (1, 2, 3, 5, 10, 20)
PUBLISHED_AT = (1, 2, 5, 10, 20, 40, 80, 160)
PUBLISHED = {
    ("8x4", "gumbel_softmax"): (216.9, 180.1, 149.6, 142.2, 137.2, 133.3, 130.1, 127.6),
    ("8x4", "gumbel_rao"): (206.8, 166.0, 144.1, 138.1, 133.6, 130.1, 127.5, 125.7),
    ("8x4", "gapped"): (213.5, 170.2, 145.0, 139.2, 135.2, 132.1, 129.9, 128.3),
    ("8x4", "straight_through"): (205.1, 166.3, 152.2, 148.8, 146.6, 137.7, 136.5, 136.4),
    ("8x4", "reinmax"): (208.7, 182.1, 150.7, 139.8, 133.4, 129.5, 126.7, 125.1),
    ("8x16", "gumbel_softmax"): (246.3, 185.8, 143.3, 126.9, 117.1, 108.6, 102.2, 99.2),
    ("8x16", "gumbel_rao"): (237.4, 178.4, 137.3, 122.7, 112.4, 105.0, 101.5, 99.6),
    ("8x16", "gapped"): (236.2, 175.4, 137.5, 121.9, 110.7, 103.5, 100.1, 98.3),
    ("8x16", "reinmax"): (246.7, 174.7, 135.7, 123.0, 113.4, 105.4, 100.3, 97.8),
    ("4x24", "gumbel_softmax"): (242.0, 179.9, 140.9, 126.4, 117.0, 109.6, 104.2, 101.5),
    ("4x24", "gumbel_rao"): (241.6, 176.2, 137.3, 123.2, 113.8, 106.7, 102.4, 100.1),
    ("4x24", "reinmax"): (250.5, 175.7, 136.2, 123.3, 115.0, 108.0, 102.7, 99.9),
    ("16x12", "gumbel_softmax"): (240.9, 184.8, 142.3, 125.9, 116.4, 108.4, 103.2, 100.4),
    ("16x12", "reinmax"): (249.6, 179.2, 136.8, 122.7, 113.7, 106.1, 100.8, 98.0),
    ("64x8", "gumbel_softmax"): (247.0, 191.2, 149.8, 130.8, 121.0, 114.4, 108.7, 103.9),
    ("64x8", "reinmax"): (265.5, 197.1, 150.8, 130.9, 120.1, 112.2, 105.9, 101.1),
}


def merged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, those that differ in their seeds as one."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        key = tuple(record["options"][name] for name in ("shape", "estimator", "epochs"))
        if key in found:
            for name in ("setting", "train", "test"):
                found[key][name] |= record[name]
            found[key][TIMES] += record[TIMES]
        else:
            found[key] = record
    return list(found.values())


def row(record: dict[str, Any], epochs: tuple[int, ...]) -> list[str]:
    """The cells of one row."""
    options = record["options"]
    shape, estimator = options["shape"], options["estimator"]
    curves = list(record["train"].values())
    last = int(options["epochs"])
    cells = [shape, f"`{estimator}`"]
    for epoch in epochs:
        losses = [curve[epoch - 1] for curve in curves if epoch <= len(curve)]
        cells.append(with_spread(losses) if epoch == last else mean_of(losses))
    cells.append(published(shape, estimator, last))
    cells.append(with_spread(list(record["test"].values())))
    on_cpu = options["device"] == "cpu"
    cells.append(f"{statistics.median(record[TIMES]):.0f}" if on_cpu else "")
    return cells


def proposals(record: dict[str, Any]) -> str:
    """The estimator and temperature of each seed."""
    found = []
    for setting in record["setting"].values():
        tau = setting["temperature"]
        found.append(f"`{setting['estimator']}`" + ("" if tau is None else f" at T = {tau:g}"))
    return f"- `proposed` at {record['options']['shape']}: {', '.join(found)}."


def published(shape: str, estimator: str, last: int) -> str:
    """Of the last epoch, or of one before it, which is named."""
    curve = dict(zip(PUBLISHED_AT, PUBLISHED.get((shape, estimator), ()), strict=False))
    epoch = max((epoch for epoch in curve if epoch <= last), default=None)
    if epoch is None:
        return ""
    return f"{curve[epoch]}" if epoch == last else f"{curve[epoch]} at {epoch}"


def mean_of(losses: list[float]) -> str:
    return f"{statistics.mean(losses):.1f}" if losses else ""


def with_spread(losses: list[float]) -> str:
    spread = f" ({statistics.stdev(losses):.1f})" if len(losses) > 1 else ""
    return mean_of(losses) + spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+", help="results of mnist_vae.py")
    records = merged([json.loads(path.read_text()) for path in parser.parse_args().files])
    most = max(int(record["options"]["epochs"]) for record in records)
    epochs = tuple(epoch for epoch in EPOCHS if epoch <= most)
    titles = ["shape", "estimator", *(f"epoch {epoch}" for epoch in epochs)]
    titles += ["published", "test", "s an epoch"]
    for cells in (titles, ["---"] * len(titles), *(row(record, epochs) for record in records)):
        print(f"| {' | '.join(cells)} |")
    for record in records:
        if record["options"]["estimator"] == "proposed":
            print(proposals(record))


if __name__ == "__main__":
    main()
