# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""One parameter of each site of a guide, e.g. its logits, in a module, under the name of the site.

Some names cannot be used as they are. A module has attributes of its own (`type`, `training`),
splits names at their dots, and keeps a parameter `a` under `a_unconstrained`. The parameter of such
a site has another name: `type_site` for a site `type`, and `a_b_site` for a site `a.b` beside `a`.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import Any

from pyro.infer.autoguide.utils import deep_setattr
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

__all__ = ["SiteParameters"]

SUFFIX = "_unconstrained"  # which Pyro adds to the name of a parameter in its module


class SiteParameters(PyroModule):
    """One parameter of each site. A `state_dict` may be loaded before the sites are known.

    :param kind: what the parameters are, e.g. "logits", for errors.
    """

    def __init__(self, kind: str = "logits") -> None:
        super().__init__()
        self._kind = kind
        self._paths: dict[str, str] = {}
        self._may_grow = False

    def of_site(self, name: str) -> Tensor:
        """The parameter of a site."""
        return attrgetter(self._paths[name])(self)

    @property
    def is_loaded(self) -> bool:
        """Whether there are parameters of a `state_dict`, before the sites are known."""
        return next(self.parameters(), None) is not None

    def set_up(
        self,
        initial: Mapping[str, Tensor],
        event_dims: Mapping[str, int],
        is_loaded: bool,
        may_grow: bool = False,
    ) -> None:
        """Make a parameter for each site, with the values of a `state_dict` if one was loaded.

        :param initial: where the parameter of each site starts, by name.
        :param event_dims: how many of its dimensions, from the right, are not of the batch.
        :param is_loaded: whether a `state_dict` was loaded, with parameters of this kind or others.
        :param may_grow: whether there may be more sites in other calls. They are added by another
            call of this method. A `state_dict` may have more sites then, or fewer.
        :raises ValueError: if the loaded `state_dict` has other sites or other shapes.
        """
        self._may_grow = may_grow
        others = {name: path for name, path in self._paths.items() if name not in initial}
        paths = _paths(initial, others)
        loaded = {name.removesuffix(SUFFIX): p.shape for name, p in self.named_parameters()}
        expected = {paths[name]: start.shape for name, start in initial.items()}
        if may_grow:
            loaded = {path: loaded[path] for path in loaded if path in expected}
            expected = {path: expected[path] for path in expected if path in loaded}
        if is_loaded and loaded != expected:
            wanted, got = (_brief(shapes) or "no site" for shapes in (expected, loaded))
            raise ValueError(
                "AutoRelaxed: the `state_dict` that was loaded before the first run must have "
                f"{self._kind} of {wanted}, got {got}; write guide(*args) first, "
                "and then guide.load_state_dict(state, strict=False) for a part of them"
            )
        for name, start in initial.items():
            make = self._complete if paths[name] in loaded else self._make
            make(paths[name], start, event_dims[name])
        self._paths.update(paths)

    def _make(self, path: str, start: Tensor, event_dim: int) -> None:
        deep_setattr(self, path, PyroParam(start.clone(), constraints.real, event_dim))

    def _complete(self, path: str, start: Tensor, event_dim: int) -> None:
        """Use the loaded parameter itself, as an optimiser may hold it already."""
        module, _, name = path.rpartition(".")
        owner: Any = self.get_submodule(module)
        loaded = getattr(owner, name + SUFFIX).detach().to(start)
        owner._pyro_params[name] = constraints.real, event_dim
        getattr(owner, name)  # replaces it by the one of Pyro's parameter store, if there is one
        setattr(owner, name, loaded)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        if not self._paths:
            for entries in (self._modules, self._parameters, self._pyro_params):
                entries.clear()
        if not self._paths or self._may_grow:
            known = dict(self.named_parameters())
            for key, value in state_dict.items():
                path = key.removeprefix(prefix).removesuffix(SUFFIX)
                ours = key == prefix + path + SUFFIX and isinstance(value, Tensor)
                new = ours and path + SUFFIX not in known
                if new and all(map(_is_plain, path.split("."))):
                    deep_setattr(self, path, PyroParam(value.clone(), constraints.real))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _paths(names: Iterable[str], known: Mapping[str, str]) -> dict[str, str]:
    """Where the parameter of each site is: under its name, or a similar one that is free.

    :param known: where those of other sites are.
    """
    leaves: set[str] = set(known.values())
    inner: set[str] = set().union(*map(_modules_of, leaves))
    paths = {}
    for name in sorted(names):
        path = name
        while not _is_free(path, leaves, inner):
            path = path.replace(".", "_") + "_site"
        paths[name] = path
        leaves.add(path)
        inner.update(_modules_of(path))
    return paths


def _is_free(path: str, leaves: set[str], inner: set[str]) -> bool:
    taken = path in leaves or path in inner or not leaves.isdisjoint(_modules_of(path))
    return not taken and all(map(_is_plain, path.split(".")))


def _modules_of(path: str) -> Iterator[str]:
    """The modules that hold a parameter: a and a.b for the parameter a.b.c."""
    return accumulate(path.split(".")[:-1], "{}.{}".format)


def _is_plain(part: str) -> bool:
    """Whether a module can have a parameter of this name."""
    special = part.startswith("__") and part.endswith("__")
    return bool(part) and not special and not part.endswith(SUFFIX) and part not in RESERVED


def _brief(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{path} {tuple(shape)}" for path, shape in shapes.items())


RESERVED = frozenset(dir(SiteParameters()))
