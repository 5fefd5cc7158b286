"""A network as users hand it over: by itself, compiled, parallel or averaged, or the function of an exported file."""

from __future__ import annotations

from typing import Any

from torch import nn

from kerneldna.network.wrapped import inside_of, unwrapped


def named(network: Any) -> Any:
    """Return what knows the classes and the preprocessing: the network inside, or the function itself."""
    return unwrapped(network) if isinstance(network, nn.Module) else network


def runnable(network: Any) -> Any:
    """Return what one process runs on one device: a compiled network as it is, the one in a parallel or averaged wrapper."""
    compiled = isinstance(network, nn.Module) and inside_of(network) == "_orig_mod"
    return network if compiled else named(network)
