"""The one place that turns configuration into objects, and says which packages it may build from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import hydra
from hydra.errors import InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError

# A name that ends in a dot trusts everything below it. Add your own package here.
TRUSTED = (
    "lightning_jepa.",
    "data_pipelines.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "lightning.Trainer",
    "lightning.pytorch.",
)
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_")


def build(node: Any, *, trusted: tuple[str, ...] | None = None, **arguments: Any) -> Any:
    """Build the object that a configuration node describes, with its children; `arguments` are built objects to add.

    Args:
        node: a mapping with `_target_`.
        trusted: packages to build from, instead of `TRUSTED`.

    Raises:
        ValueError: as `checked`, or from the constructor itself.
    """
    plain = checked(node, trusted=trusted, **arguments)
    try:
        # Built objects join by an ordinary call: Hydra would copy them into a configuration.
        make = partial(hydra.utils.instantiate({**plain, "_partial_": True}, _convert_="all"), **arguments)
        return make if plain.get("_partial_") else make()
    except InstantiationException as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from error
        raise
    except MisconfigurationException as error:  # Lightning's word for a trainer that this machine cannot have
        raise ValueError(str(error)) from error


def checked(node: Any, *, trusted: tuple[str, ...] | None = None, **arguments: Any) -> Mapping[str, Any]:
    """All that can be said against a node without building it; returns it as plain containers.

    Every `_target_` below the node is looked at before the first is built, so that a configuration or checkpoint from
    elsewhere cannot run code of other packages.

    Raises:
        ValueError: if a target is unknown, not trusted or does not take the given keys or plain values.
    """
    plain = resolved(node)
    if not isinstance(plain, Mapping) or "_target_" not in plain:
        raise ValueError(f"cannot build from {plain!r}; expected a mapping with the key _target_")
    for described in nodes(plain):
        _check(described, arguments if described is plain else {}, TRUSTED if trusted is None else trusted)
    return plain


def resolved(node: Any) -> Any:
    """A part of the configuration as plain containers and values.

    Raises:
        ValueError: if it asks for a key that another part does not have.
    """
    try:
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except InterpolationKeyError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{error.full_key}: {reason}. The parts do not fit together: choose perception, world_model and criterion "
            "for the same kind of state, a map or a vector (the head of each file in conf/world_model says for which)"
        ) from error


def nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping with a `_target_` in a plain nested container, from the outside in."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from nodes(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from nodes(child)


def _check(node: Mapping[str, Any], arguments: Mapping[str, Any], trusted: tuple[str, ...]) -> None:
    target, names = node["_target_"], ", ".join(trusted)
    if not isinstance(target, str) or not _inside(target, trusted):
        raise ValueError(f"_target_ {target!r} may not be built; trusted are {names} (see lightning_jepa/build.py)")
    try:
        found = hydra.utils.get_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"_target_ {target!r} does not exist: {error}") from error
    # A trusted module can hold a foreign one under its name ("lightning_jepa.paths.os"): ask where the object is from.
    top_level = (inspect.isclass(found) or inspect.isfunction(found)) and "." not in found.__qualname__
    if not top_level or not _inside(f"{found.__module__}.{found.__qualname__}", trusted):
        raise ValueError(f"_target_ {target!r} is no class or function of {names} (see lightning_jepa/build.py)")
    given = {key: value for key, value in node.items() if key not in HYDRA_KEYS} | dict(arguments)
    signature = _signature(found)
    try:
        signature.bind_partial(**given) if node.get("_partial_") else signature.bind(**given)
    except TypeError as error:
        raise ValueError(f"{target}: {error}; it takes {', '.join(signature.parameters)}") from error
    for name, parameter in signature.parameters.items():
        if name in given and given[name] != parameter.default and not _fits(given[name], parameter.annotation):
            expected = inspect.formatannotation(parameter.annotation)
            raise ValueError(f"{target}: {name}={given[name]!r}, expected {expected.replace('collections.abc.', '')}")


def _signature(found: Any) -> inspect.Signature:
    try:
        return inspect.signature(found, eval_str=True)
    except NameError:  # a name that its module imports for type checkers alone
        return inspect.signature(found)


def _fits(value: Any, expected: Any) -> bool:
    """Whether a plain value may be what is expected; of built objects and unknown annotations nothing is said."""
    kind = get_origin(expected) or expected
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(expected))
    if kind is Literal:
        return value in get_args(expected)
    if not isinstance(value, (bool, int, float, str, NoneType)) or not isinstance(kind, type):
        return True
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    return kind in (object, inspect.Parameter.empty) or (kind in (bool, str, NoneType) and isinstance(value, kind))


def _inside(name: str, trusted: tuple[str, ...]) -> bool:
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in trusted)
