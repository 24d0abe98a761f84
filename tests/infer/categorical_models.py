# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""The categorical models of Pyro's tutorials and examples, rebuilt with small data.

The bodies are plain Pyro, with integer `Categorical` sites, and so are the guides. A model marks
its sites for enumeration where Pyro's own does.
"""

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch.distributions import constraints, transform_to

PARALLEL = {"enumerate": "parallel"}


@dataclass(frozen=True)
class Example:
    """A model with a guide and data.

    :ivar model: in Pyro's idiom.
    :ivar guide: of the hidden categorical sites.
    :ivar data: a function that makes the arguments.
    :ivar nesting: the number of nested plates.
    :ivar settings: keyword arguments of model and guide.
    :ivar tables: the constraint and shape of each global continuous site.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    data: Callable[[], tuple[Any, ...]]
    nesting: int
    settings: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def learnt(self) -> Callable[..., Any]:
        """The model with a parameter for each of its tables, as for `AutoDelta`."""

        def model(*args: Any, **kwargs: Any) -> Any:
            with poutine.condition(data={name: self._table(name) for name in self.tables}):
                return self.model(*args, **kwargs)

        return model

    def _table(self, name: str) -> torch.Tensor:
        constraint, *shape = self.tables[name]

        def start() -> torch.Tensor:
            return transform_to(constraint)(0.5 * torch.randn(shape))

        return pyro.param(f"learnt_{name}", start, constraint=constraint)


def without_marks(model: Callable[..., Any]) -> Callable[..., Any]:
    """The model without its marks for enumeration."""
    return poutine.infer_config(model, lambda site: {"enumerate": None})


def positive(*shape: int) -> torch.Tensor:
    return torch.rand(shape) + 0.5


def simplex(*shape: int) -> torch.Tensor:
    return torch.randn(shape).softmax(-1)


def logits(name: str, *shape: int) -> torch.Tensor:
    """The logits of a guide's site."""
    return pyro.param(f"q_{name}", lambda: 0.3 * torch.randn(shape))


# A mixture, with everything learnt.


def mixture(data, k=3):
    weights = pyro.param("weights", lambda: simplex(k), constraint=constraints.simplex)
    locs = pyro.param("locs", lambda: torch.randn(k))
    scales = pyro.param("scales", lambda: positive(k), constraint=constraints.positive)
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scales[assignment]), obs=data)


def mixture_guide(data, k=3):
    with pyro.plate("data", len(data)):
        pyro.sample("assignment", dist.Categorical(logits=logits("assignment", len(data), k)))


# The mixture of the enumeration tutorial, with priors and a subsample.


def tutorial_mixture(data, num_components=3, batch_size=None):
    p = pyro.sample("p", dist.Dirichlet(0.5 * torch.ones(num_components)))
    scale = pyro.sample("scale", dist.LogNormal(0, num_components))
    with pyro.plate("components", num_components):
        loc = pyro.sample("loc", dist.Normal(0, 10))
    with pyro.plate("data", len(data), batch_size) as ind:
        x = pyro.sample("x", dist.Categorical(p))
        pyro.sample("obs", dist.Normal(loc[x], scale), obs=data[ind])


def tutorial_mixture_guide(data, num_components=3, batch_size=None):
    with pyro.plate("data", len(data), batch_size) as ind:
        of_batch = logits("x", len(data), num_components)[ind]
        pyro.sample("x", dist.Categorical(logits=of_batch))


# The chain of the enumeration tutorial.


def chain():
    p = pyro.param("p", lambda: torch.randn(3, 3).exp(), constraint=constraints.simplex)
    x = pyro.sample("x", dist.Categorical(p[0]))
    y = pyro.sample("y", dist.Categorical(p[x]))
    z = pyro.sample("z", dist.Categorical(p[y]))
    return x, y, z


def chain_guide():
    for name in "xyz":
        pyro.sample(name, dist.Categorical(logits=logits(name, 3)))


def structured_chain_guide():
    """Each site depends on the one before."""
    x = pyro.sample("x", dist.Categorical(logits=logits("x", 3)))
    y = pyro.sample("y", dist.Categorical(logits=logits("y", 3, 3)[x]))
    pyro.sample("z", dist.Categorical(logits=Vindex(logits("z", 3, 3))[y]))


# Its time series.


def time_series(data, data_dim, hidden_dim=3):
    with pyro.plate("hidden_state", hidden_dim):
        transition = pyro.sample("transition", dist.Dirichlet(0.5 * torch.ones(hidden_dim)))
        emission = pyro.sample("emission", dist.Dirichlet(0.5 * torch.ones(data_dim)))
    x = 0
    for t, y in pyro.markov(enumerate(data)):
        x = pyro.sample(f"x_{t}", dist.Categorical(transition[x]), infer=PARALLEL)
        pyro.sample(f"y_{t}", dist.Categorical(emission[x]), obs=y)


def time_series_guide(data, data_dim, hidden_dim=3):
    for t in pyro.markov(range(len(data))):
        pyro.sample(f"x_{t}", dist.Categorical(logits=logits(f"x_{t}", hidden_dim)))


# Its model of features, with two plates and `Vindex`.


def features(data):
    data_plate = pyro.plate("data_plate", 6, dim=-1)
    feature_plate = pyro.plate("feature_plate", 5, dim=-2)
    component_plate = pyro.plate("component_plate", 4, dim=-1)
    with feature_plate, component_plate:
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
    with data_plate:
        c = pyro.sample("c", dist.Categorical(torch.ones(4)))
        with feature_plate as vdx:
            pc = Vindex(p)[vdx[..., None], c, :]
            pyro.sample("x", dist.Categorical(pc), obs=data)


def features_guide(data):
    with pyro.plate("data_plate", 6, dim=-1):
        pyro.sample("c", dist.Categorical(logits=logits("c", 6, 4)))


# Hidden Markov models 1 to 4 of the polyphonic music example.


def time_steps(lengths, max_length, args):
    return pyro.markov(range(max_length if args.jit else lengths.max()))


def hmm_1(sequences, lengths, args, batch_size=None, include_prior=True):
    num_sequences, max_length, data_dim = map(int, sequences.shape)
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample(
            "probs_x", dist.Dirichlet(0.9 * torch.eye(args.hidden_dim) + 0.1).to_event(1)
        )
        probs_y = pyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, data_dim]).to_event(2)
        )
    tones_plate = pyro.plate("tones", data_dim, dim=-1)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        x = 0
        for t in time_steps(lengths, max_length, args):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                with tones_plate:
                    pyro.sample(
                        f"y_{t}",
                        dist.Bernoulli(probs_y[x.squeeze(-1)]),
                        obs=sequences[batch, t],
                    )


def hmm_2(sequences, lengths, args, batch_size=None, include_prior=True):
    num_sequences, max_length, data_dim = map(int, sequences.shape)
    with poutine.mask(mask=include_prior):
        probs_x = pyro.sample(
            "probs_x", dist.Dirichlet(0.9 * torch.eye(args.hidden_dim) + 0.1).to_event(1)
        )
        probs_y = pyro.sample(
            "probs_y", dist.Beta(0.1, 0.9).expand([args.hidden_dim, 2, data_dim]).to_event(3)
        )
    tones_plate = pyro.plate("tones", data_dim, dim=-1)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        x, y = 0, 0
        for t in time_steps(lengths, max_length, args):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                with tones_plate as tones:
                    y = pyro.sample(
                        f"y_{t}",
                        dist.Bernoulli(probs_y[x, y, tones]),
                        obs=sequences[batch, t],
                    ).long()


def hmm_3(sequences, lengths, args, batch_size=None, include_prior=True):
    num_sequences, max_length, data_dim = map(int, sequences.shape)
    hidden_dim = int(args.hidden_dim**0.5)
    with poutine.mask(mask=include_prior):
        probs_w = pyro.sample(
            "probs_w", dist.Dirichlet(0.9 * torch.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_x = pyro.sample(
            "probs_x", dist.Dirichlet(0.9 * torch.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_y = pyro.sample(
            "probs_y",
            dist.Beta(0.1, 0.9).expand([hidden_dim, hidden_dim, data_dim]).to_event(3),
        )
    tones_plate = pyro.plate("tones", data_dim, dim=-1)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        w, x = 0, 0
        for t in time_steps(lengths, max_length, args):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=PARALLEL)
                x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                with tones_plate as tones:
                    pyro.sample(
                        f"y_{t}",
                        dist.Bernoulli(probs_y[w, x, tones]),
                        obs=sequences[batch, t],
                    )


def hmm_4(sequences, lengths, args, batch_size=None, include_prior=True):
    num_sequences, max_length, data_dim = map(int, sequences.shape)
    hidden_dim = int(args.hidden_dim**0.5)
    with poutine.mask(mask=include_prior):
        probs_w = pyro.sample(
            "probs_w", dist.Dirichlet(0.9 * torch.eye(hidden_dim) + 0.1).to_event(1)
        )
        probs_x = pyro.sample(
            "probs_x",
            dist.Dirichlet(0.9 * torch.eye(hidden_dim) + 0.1).expand_by([hidden_dim]).to_event(2),
        )
        probs_y = pyro.sample(
            "probs_y",
            dist.Beta(0.1, 0.9).expand([hidden_dim, hidden_dim, data_dim]).to_event(3),
        )
    tones_plate = pyro.plate("tones", data_dim, dim=-1)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        w = x = torch.tensor(0, dtype=torch.long)
        for t in time_steps(lengths, max_length, args):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=PARALLEL)
                x = pyro.sample(f"x_{t}", dist.Categorical(Vindex(probs_x)[w, x]), infer=PARALLEL)
                with tones_plate as tones:
                    pyro.sample(
                        f"y_{t}",
                        dist.Bernoulli(probs_y[w, x, tones]),
                        obs=sequences[batch, t],
                    )


def hmm_guide(names, sequences, lengths, args, batch_size=None):
    num_sequences, max_length, _ = map(int, sequences.shape)
    hidden_dim = args.hidden_dim if names == "x" else int(args.hidden_dim**0.5)
    with pyro.plate("sequences", num_sequences, batch_size, dim=-2) as batch:
        lengths = lengths[batch]
        for t in time_steps(lengths, max_length, args):
            with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                for name in names:
                    of_all = logits(f"{name}_{t}", num_sequences, 1, hidden_dim)
                    pyro.sample(f"{name}_{t}", dist.Categorical(logits=of_all[batch]))


def music():
    """Sequences of chords, and their lengths."""
    sequences = torch.bernoulli(torch.full((4, 3, 5), 0.4))
    return sequences, torch.tensor([3, 1, 3, 2])


HMM = Namespace(hidden_dim=4, jit=True)


# Topics of documents.


def lda(data=None, args=None, batch_size=None):
    with pyro.plate("topics", args.num_topics):
        topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / args.num_topics, 1.0))
        topic_words = pyro.sample(
            "topic_words", dist.Dirichlet(torch.ones(args.num_words) / args.num_words)
        )
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        if data is not None:
            data = data[:, ind]
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
        with pyro.plate("words", args.num_words_per_doc):
            word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=PARALLEL)
            data = pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)
    return topic_weights, topic_words, data


def amortised_lda_guide(data, args, batch_size=None):
    """A network that reads the counts of the words, and a table of topics by word."""
    network = pyro.param("network", lambda: 0.1 * torch.randn(args.num_words, args.num_topics))
    table = logits("word_topics", args.num_words, args.num_topics)
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        data = data[:, ind]
        counts = torch.zeros(args.num_words, data.shape[1])
        counts = counts.scatter_add(0, data, torch.ones(data.shape))
        doc_topics = (counts.T @ network).softmax(-1)
        pyro.sample("doc_topics", dist.Delta(doc_topics, event_dim=1))
        with pyro.plate("words", args.num_words_per_doc):
            pyro.sample("word_topics", dist.Categorical(logits=table[data]))


def local_lda_guide(data, args, batch_size=None):
    """Parameters of each document and each word."""
    of_words = logits("word_topics", args.num_words_per_doc, args.num_docs, args.num_topics)
    of_documents = logits("doc_topics", args.num_docs, args.num_topics)
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        pyro.sample("doc_topics", dist.Delta(of_documents[ind].softmax(-1), event_dim=1))
        with pyro.plate("words", args.num_words_per_doc):
            pyro.sample("word_topics", dist.Categorical(logits=of_words[:, ind]))


LDA = Namespace(num_topics=3, num_words=6, num_docs=4, num_words_per_doc=5)


def words():
    return (torch.randint(LDA.num_words, (LDA.num_words_per_doc, LDA.num_docs)),)


# Discrete random effects of groups and individuals, in a hidden Markov model of animals.


def index_param(param, ind, dim=-2):
    """The entries of a parameter at an index in one of its event dimensions."""
    for _ in param.shape[dim:]:
        ind = ind.unsqueeze(-1)
    inds = [torch.arange(n).reshape((n,) + (1,) * d) for d, n in enumerate(reversed(param.shape))]
    inds.reverse()
    inds[dim] = ind
    return param[tuple(inds)].squeeze(dim)


def zero_inflated(name, distribution, zero_logits, data, missing):
    is_zero = pyro.sample(
        f"{name}_is_zero", dist.Categorical(logits=zero_logits), obs=data == missing
    )
    zero = dist.Delta(torch.tensor(missing))
    pyro.sample(name, dist.MaskedMixture(is_zero, distribution, zero), obs=data)


def mixed(steps, angles, omegas, individuals, timesteps, sizes, missing=1e-6):
    n_v, n_state = sizes.random, sizes.state
    of_states = partial(pyro.param, constraint=constraints.positive)
    probs_e_g = pyro.param("probs_e_group", lambda: simplex(n_v), constraint=constraints.simplex)
    theta_g = pyro.param("theta_group", lambda: torch.randn(n_v, n_state**2))
    probs_e_i = pyro.param(
        "probs_e_individual", lambda: simplex(sizes.group, n_v), constraint=constraints.simplex
    )
    theta_i = pyro.param("theta_individual", lambda: torch.randn(sizes.group, n_v, n_state**2))
    step_zi_param = pyro.param("step_zi_param", lambda: torch.randn(n_state, 2))
    step_concentration = of_states("step_concentration", lambda: positive(n_state))
    step_rate = of_states("step_rate", lambda: positive(n_state))
    angle_concentration = of_states("angle_concentration", lambda: positive(n_state))
    angle_loc = pyro.param("angle_loc", lambda: torch.randn(n_state))
    omega_zi_param = pyro.param("omega_zi_param", lambda: torch.randn(n_state, 2))
    omega_concentration0 = of_states("omega_concentration0", lambda: positive(n_state))
    omega_concentration1 = of_states("omega_concentration1", lambda: positive(n_state))

    gamma = torch.zeros(n_state**2)
    with pyro.plate("group", sizes.group, dim=-1):
        e_g = pyro.sample("e_g", dist.Categorical(probs_e_g))
        gamma = gamma + index_param(theta_g, e_g, dim=-2)
        with (
            pyro.plate("individual", sizes.individual, dim=-2),
            poutine.mask(mask=individuals),
        ):
            e_i = pyro.sample("e_i", dist.Categorical(probs_e_i))
            gamma = gamma + index_param(theta_i, e_i, dim=-2)
            gamma_t = gamma.reshape((*gamma.shape[:-1], n_state, n_state))
            y = torch.tensor(0)
            for t in pyro.markov(range(sizes.timesteps)):
                with poutine.mask(mask=timesteps[..., t]):
                    gamma_y = index_param(gamma_t, y, dim=-2)
                    y = pyro.sample(f"y_{t}", dist.Categorical(logits=gamma_y))
                    step = dist.Gamma(
                        index_param(step_concentration, y, dim=-1),
                        index_param(step_rate, y, dim=-1),
                    )
                    zero_inflated(
                        f"step_{t}",
                        step,
                        index_param(step_zi_param, y, dim=-2),
                        steps[..., t],
                        missing,
                    )
                    angle = dist.VonMises(
                        index_param(angle_loc, y, dim=-1),
                        index_param(angle_concentration, y, dim=-1),
                    )
                    pyro.sample(f"angle_{t}", angle, obs=angles[..., t])
                    omega = dist.Beta(
                        index_param(omega_concentration1, y, dim=-1),
                        index_param(omega_concentration0, y, dim=-1),
                    )
                    zero_inflated(
                        f"omega_{t}",
                        omega,
                        index_param(omega_zi_param, y, dim=-2),
                        omegas[..., t],
                        missing,
                    )


def mixed_guide(steps, angles, omegas, individuals, timesteps, sizes):
    n_v, n_state = sizes.random, sizes.state
    both = sizes.individual, sizes.group
    with pyro.plate("group", sizes.group, dim=-1):
        pyro.sample("e_g", dist.Categorical(logits=logits("e_g", sizes.group, n_v)))
        with (
            pyro.plate("individual", sizes.individual, dim=-2),
            poutine.mask(mask=individuals),
        ):
            pyro.sample("e_i", dist.Categorical(logits=logits("e_i", *both, n_v)))
            for t in pyro.markov(range(sizes.timesteps)):
                with poutine.mask(mask=timesteps[..., t]):
                    of_step = logits(f"y_{t}", *both, n_state)
                    pyro.sample(f"y_{t}", dist.Categorical(logits=of_step))


MIXED = Namespace(random=2, state=3, group=2, individual=3, timesteps=3)


def animals():
    """Steps, angles and activities, some of which are missing, and masks."""
    shape = MIXED.individual, MIXED.group, MIXED.timesteps
    steps, omegas = positive(*shape), 0.1 + 0.8 * torch.rand(shape)
    steps[0, 0, 0] = omegas[1, 1, 1] = steps[2, 0, 2] = omegas[0, 1, 2] = 1e-6
    individuals = torch.tensor([[True, True], [True, True], [True, False]])
    timesteps = torch.ones(shape, dtype=torch.bool)
    timesteps[1, 0, 2] = False
    return steps, 3 * torch.randn(shape).tanh(), omegas, individuals, timesteps


MUSIC = {"nesting": 2, "settings": {"args": HMM, "batch_size": 3}}
OF_LDA = {"topic_weights": (constraints.positive, 3), "topic_words": (constraints.simplex, 3, 6)}

EXAMPLES = {
    "mixture": Example(mixture, mixture_guide, lambda: (torch.randn(6),), 1),
    "tutorial mixture": Example(
        tutorial_mixture,
        tutorial_mixture_guide,
        lambda: (torch.randn(6),),
        1,
        {"batch_size": 4},
        {
            "p": (constraints.simplex, 3),
            "scale": (constraints.positive,),
            "loc": (constraints.real, 3),
        },
    ),
    "chain": Example(chain, chain_guide, tuple, 0),
    "structured chain": Example(chain, structured_chain_guide, tuple, 0),
    "time series": Example(
        time_series,
        time_series_guide,
        lambda: (torch.tensor([0, 2, 1, 1]),),
        1,
        {"data_dim": 3},
        {"transition": (constraints.simplex, 3, 3), "emission": (constraints.simplex, 3, 3)},
    ),
    "features": Example(
        features,
        features_guide,
        lambda: (torch.randint(3, (5, 6)),),
        2,
        tables={"p": (constraints.simplex, 5, 4, 3)},
    ),
    "hmm 1": Example(
        hmm_1,
        partial(hmm_guide, "x"),
        music,
        tables={
            "probs_x": (constraints.simplex, 4, 4),
            "probs_y": (constraints.unit_interval, 4, 5),
        },
        **MUSIC,
    ),
    "hmm 2": Example(
        hmm_2,
        partial(hmm_guide, "x"),
        music,
        tables={
            "probs_x": (constraints.simplex, 4, 4),
            "probs_y": (constraints.unit_interval, 4, 2, 5),
        },
        **MUSIC,
    ),
    "hmm 3": Example(
        hmm_3,
        partial(hmm_guide, "wx"),
        music,
        tables={
            "probs_w": (constraints.simplex, 2, 2),
            "probs_x": (constraints.simplex, 2, 2),
            "probs_y": (constraints.unit_interval, 2, 2, 5),
        },
        **MUSIC,
    ),
    "hmm 4": Example(
        hmm_4,
        partial(hmm_guide, "wx"),
        music,
        tables={
            "probs_w": (constraints.simplex, 2, 2),
            "probs_x": (constraints.simplex, 2, 2, 2),
            "probs_y": (constraints.unit_interval, 2, 2, 5),
        },
        **MUSIC,
    ),
    "lda": Example(lda, local_lda_guide, words, 2, {"args": LDA, "batch_size": 2}, OF_LDA),
    "amortised lda": Example(
        lda, amortised_lda_guide, words, 2, {"args": LDA, "batch_size": 2}, OF_LDA
    ),
    "mixed": Example(mixed, mixed_guide, animals, 2, {"sizes": MIXED}),
}
