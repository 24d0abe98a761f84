# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Feature selection
=================

Choose m of 30 features for a logistic regression, by variational inference.

Usage::

    python examples/feature_selection.py              # 5 of 30, a quarter of a minute
    python examples/feature_selection.py --size 3
    python examples/feature_selection.py --soft       # RelaxedSubset in the model and in the guide

Ctrl-C ends the training early and keeps the result.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, pyro_method
from pyro.optim import Adam
from sklearn.datasets import load_breast_cancer
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from options import Trainings, option_parser, positive_number, whole_number
from pyro_gumbel import RelaxedSubset, Subset, SubsetStraightThrough

# %%
# The data
# --------
#
# The data are scikit-learn's breast cancer data: 569 tumours, of which 212 are malignant. Three
# tenths of them are held out.

FEATURES = 30
HELD_OUT = 0.3


class Tumours(NamedTuple):
    """Standardised features, and whether each tumour is malignant."""

    features: np.ndarray
    malignant: np.ndarray


def breast_cancer(seed: int) -> tuple[Tumours, Tumours, np.ndarray]:
    """The tumours to train on, the held-out ones, and the names of the features."""
    data = load_breast_cancer()
    malignant = data.target == list(data.target_names).index("malignant")
    seen, unseen, seen_malignant, unseen_malignant = train_test_split(
        data.data, malignant, test_size=HELD_OUT, stratify=malignant, random_state=seed
    )
    scaler = StandardScaler().fit(seen)
    tumours = Tumours(scaler.transform(seen), seen_malignant)
    held_out = Tumours(scaler.transform(unseen), unseen_malignant)
    return tumours, held_out, data.feature_names


# %%
# The model and the guide
# -----------------------
#
# The model has an m-hot latent vector: the features that the regression sees. A priori all subsets
# of m are equally probable. The guide draws them with `SubsetStraightThrough`: samples are
# discrete, so the discrete model itself is trained, and gradients reach the logits through the
# sample. Weights and bias have a normal guide.

SCALE = 2.0  # of the prior over weights and bias


class Selection(PyroModule):
    """A logistic regression on the features that an m-hot vector chooses, and its guide.

    :param size: m, how many features are chosen.
    :param temperature: of the surrogate gradient, or of the relaxed distributions.
    :param soft: whether the choice is relaxed.
    """

    def __init__(self, size: int, temperature: float, soft: bool) -> None:
        super().__init__()
        self.size, self.temperature, self.soft = size, temperature, soft
        self.logits = nn.Parameter(torch.zeros(FEATURES))
        self.coefficients = AutoNormal(poutine.block(self.model, hide=["chosen"]))

    def distribution(self, logits: Tensor) -> Any:
        """A distribution of the choice: the prior at equal logits, the guide at its own."""
        family = RelaxedSubset if self.soft else SubsetStraightThrough
        return family(self.temperature, self.size, logits=logits)

    @pyro_method
    def model(self, features: Tensor, malignant: Tensor) -> None:
        chosen = pyro.sample("chosen", self.distribution(torch.zeros(FEATURES)))
        weights = pyro.sample("weights", dist.Normal(torch.zeros(FEATURES), SCALE).to_event(1))
        bias = pyro.sample("bias", dist.Normal(0.0, SCALE))
        with pyro.plate("tumours", len(features)):
            logits = (features * (chosen * weights)).sum(-1) + bias
            pyro.sample("malignant", dist.Bernoulli(logits=logits), obs=malignant)

    @pyro_method
    def guide(self, features: Tensor, malignant: Tensor) -> None:
        pyro.sample("chosen", self.distribution(self.logits))
        self.coefficients(features, malignant)

    @torch.no_grad()
    def inclusion(self) -> np.ndarray:
        """P(each feature is chosen) under the guide; if relaxed, P(it is among the m largest)."""
        return Subset(self.size, logits=self.logits).mean.numpy()


# %%
# Training
# --------

PARTICLES = 16
LEARNING_RATE = 0.05


def train(trainings: Trainings, selection: Selection, tumours: Tumours, steps: int) -> None:
    """Maximise the ELBO until the last step or the first Ctrl-C."""
    features, malignant = (torch.as_tensor(part).float() for part in tumours)
    elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(selection.model, selection.guide, Adam({"lr": LEARNING_RATE}), elbo)
    elbos: list[float] = []
    for _, bar in trainings.steps(steps, svi, features, malignant, records=[elbos]):
        elbos.append(-svi.step(features, malignant))
        bar.set_postfix_str(f"ELBO {np.mean(elbos[-100:]):.1f}", refresh=False)


# %%
# Evaluation
# ----------
#
# The m features with the highest inclusion probabilities are evaluated by an ordinary logistic
# regression on held-out tumours. It is compared with regressions on all features, on m random ones,
# and on the m of the highest univariate F-scores.

RANDOM_CHOICES = 100


def judge(chosen: np.ndarray, tumours: Tumours, held_out: Tumours) -> tuple[float, float]:
    """The accuracy and the log loss, on new tumours, of a regression on these features alone."""
    regression = LogisticRegression().fit(tumours.features[:, chosen], tumours.malignant)
    probabilities = regression.predict_proba(held_out.features[:, chosen])[:, 1]
    accuracy = np.mean((probabilities > 0.5) == held_out.malignant)
    return accuracy, log_loss(held_out.malignant, probabilities)


def report(choices: dict[str, list[np.ndarray]], tumours: Tumours, held_out: Tumours) -> None:
    """How well regressions do on the features of each choice, averaged over its subsets."""
    print(f"held-out accuracy ({len(held_out.malignant)} tumours) of a logistic regression")
    for title, subsets in choices.items():
        accuracy, loss = np.mean([judge(subset, tumours, held_out) for subset in subsets], axis=0)
        print(f"  {title}: {accuracy:.1%}, log loss {loss:.3f}")


# %%
# The picture
# -----------


def draw(
    path: Path, names: np.ndarray, inclusion: np.ndarray, chosen: np.ndarray, univariate: np.ndarray
) -> None:
    """The inclusion probabilities as bars, with both choices marked."""
    order = inclusion.argsort()
    figure = Figure(figsize=(8, 7), layout="constrained")  # without pyplot: needs no display
    axes = figure.subplots()
    axes.barh(names[order], inclusion[order], color="0.7")
    axes.barh(names[chosen], inclusion[chosen], color="C0", label=f"the {len(chosen)} chosen")
    label = f"the {len(univariate)} best by F-score"
    axes.plot(np.full(len(univariate), 1.04), names[univariate], "D", color="C1", label=label)
    axes.set(title="inclusion probability under the guide", xlim=(0, 1.08))
    axes.margins(y=0.01)
    axes.title.set_fontsize("medium")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


# %%
# The program
# -----------


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, steps=1000, out="feature_selection.png")
    add = parser.add_argument
    add("--size", type=whole_number(1, 5, FEATURES - 1), default=5, help="m (default: 5)")
    add("--soft", action="store_true", help="relax the choice, in the model and in the guide")
    add("--temperature", type=positive_number, default=0.5, help="default: 0.5")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    trainings = Trainings(options)
    start = trainings.clock()
    pyro.set_rng_seed(options.seed)
    torch.set_num_threads(1)  # the tensors are too small for a second thread to pay
    tumours, held_out, names = breast_cancer(options.seed)
    size = options.size
    selection = Selection(size, options.temperature, options.soft)
    train(trainings, selection, tumours, options.steps)
    inclusion = selection.inclusion()
    chosen = inclusion.argsort()[: -size - 1 : -1]  # the most probable first
    univariate = SelectKBest(f_classif, k=size).fit(*tumours).get_support(indices=True)
    generator = np.random.default_rng(options.seed)
    random = [generator.choice(FEATURES, size, replace=False) for _ in range(RANDOM_CHOICES)]
    included = ", ".join(f"{names[i]} ({inclusion[i]:.2f})" for i in chosen)
    print(f"chosen, with their inclusion probabilities: {included}")
    print(f"best by F-score: {', '.join(names[univariate])}")
    choices = {
        "on all features": [np.arange(FEATURES)],
        f"on {size} at random, mean of {RANDOM_CHOICES}": random,
        "on the best by F-score": [univariate],
        "on the chosen": [chosen],
    }
    report(choices, tumours, held_out)
    draw(options.out, names, inclusion, chosen, univariate)
    print(f"wrote {options.out} after {trainings.clock() - start:.0f} s")


if __name__ == "__main__":
    main()

# %%
# The result
# ----------
#
# The F-score sees one feature at a time, so it takes several features that say the same. The guide
# is trained on whole subsets, and chooses features that complement each other.
#
# What to try next
# ----------------
#
# - ``--size 3``: fewer features.
# - ``--soft``: `RelaxedSubset` in the model and in the guide.
# - `spike_and_slab.py` does not fix the number of features.
