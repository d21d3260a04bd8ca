"""Forwards that stop in front of a layer and go on later.

Each calibration batch runs through the model once, as a coroutine (a greenlet) that is suspended
whenever its forward comes to a layer that is not solved yet. So the inputs of every layer come from
continuing where the previous layer left off, for any Python model, traceable or not. Everything
runs in the caller's thread, in the order of a plain loop; threads would each keep freed memory in
an arena of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode

from brevitas_axe.model.running import first_input

_AUTOCAST_DEVICES = ("cpu", "cuda")
Modes = tuple[bool, list[tuple[bool, torch.dtype]]]


class _Abandoned(BaseException):
    """Unwinds a suspended forward; no `except Exception` of a model may catch it."""


class _Coroutine(greenlet):
    """A greenlet with a reference to its forward, by which hooks find it."""

    forward: SuspendedForward


class SuspendedForward:
    """One forward of one batch, without gradients and under the autocast of its creation.

    Attributes:
        layer: name of the layer in front of which it is suspended, None once it has finished.
        layer_input: first positional input of that layer.
        branched_input: input of every layer of branches that is running, by its name.
        finished: True after the forward has returned.
        output: what it returned.
    """

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.layer: str | None = None
        self.layer_input: object = None
        self.branched_input: dict[str, Any] = {}
        self.output: object = None
        self.finished = False
        self._pauses: Callable[[str], bool] = lambda name: False
        self._modes: Modes = (False, _modes()[1])
        self._functions: list[Any] = []
        self._coroutine = _Coroutine(partial(self._run, model, args, kwargs))
        self._coroutine.forward = self
        self._caller = getcurrent()

    def _run(self, model: nn.Module, args: tuple, kwargs: dict) -> object:
        try:
            return model(*args, **kwargs)
        except _Abandoned:
            return None
        finally:
            self.finished, self.layer, self.layer_input = True, None, None

    def advance(self, pauses: Callable[[str], bool]) -> None:
        """Runs on until a layer with pauses(name) or the end; raises what the model raises."""
        if self.finished:
            return
        self._pauses = pauses
        with self._resumed():
            output = self._coroutine.switch()
        if self.finished:
            self.output = output

    def stop(self, name: str, layer_input: object) -> None:
        """Called by the hook in front of a layer, inside the forward; suspends it there."""
        if not self._pauses(name):
            return
        self.layer, self.layer_input = name, layer_input
        self._caller.switch()
        self.layer, self.layer_input = None, None

    def abandon(self) -> None:
        """Ends the forward where it is suspended."""
        if self._coroutine:  # started and not finished
            with self._resumed():
                self._coroutine.throw(_Abandoned)

    @contextmanager
    def _resumed(self) -> Iterator[None]:
        """Swaps torch's gradient, autocast and function modes: a `with` block may be open there."""
        outer, depth = _modes(), len(_get_current_function_mode_stack())
        self._caller = self._coroutine.parent = getcurrent()
        _set_modes(self._modes)
        for mode in self._functions:
            _push_mode(mode)
        try:
            yield
        finally:
            inner = len(_get_current_function_mode_stack()) - depth
            self._functions = [_pop_mode() for _ in range(inner)][::-1]
            self._modes = _modes()
            _set_modes(outer)


def _modes() -> Modes:
    return torch.is_grad_enabled(), [
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in _AUTOCAST_DEVICES
    ]


def _set_modes(modes: Modes) -> None:
    torch.set_grad_enabled(modes[0])
    for device, (enabled, dtype) in zip(_AUTOCAST_DEVICES, modes[1], strict=True):
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)


def add_hooks(
    layers: Mapping[str, nn.Module], branched: Mapping[str, nn.Module] = MappingProxyType({})
) -> list:
    """Lets forwards stop in front of layers, and keep the inputs of layers that have branches.

    Returns:
        Handles with `remove()`.
    """

    def stop_at(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            current = getcurrent()
            if isinstance(current, _Coroutine):
                current.forward.stop(name, first_input(args, kwargs))

        return hook

    def keep(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            current = getcurrent()
            if isinstance(current, _Coroutine):
                current.forward.branched_input[name] = first_input(args, kwargs)

        return hook

    def forget(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            current = getcurrent()
            if isinstance(current, _Coroutine):
                current.forward.branched_input.pop(name, None)

        return hook

    handles = [
        layer.register_forward_pre_hook(stop_at(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    for name, module in branched.items():
        handles.append(module.register_forward_pre_hook(keep(name), with_kwargs=True))
        handles.append(module.register_forward_hook(forget(name)))
    return handles


def abandon_all(forwards: Iterable[SuspendedForward | None]) -> None:
    """Ends every forward, also those that have finished or never started."""
    for forward in forwards:
        if forward is not None:
            forward.abandon()
