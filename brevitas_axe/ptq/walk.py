"""Forwards that stop in front of a layer and go on later.

Each calibration batch runs through the model once, in a thread of its own that sleeps whenever its
forward reaches a layer that is not solved yet. So the inputs of every layer come from continuing
where the previous layer left off, for any Python model, traceable or not. Exactly one thread runs
at a time, handed over by semaphores: the order of operations is that of a plain loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import torch
from torch import nn

_current = threading.local()


class _Abandoned(BaseException):
    """Unwinds a sleeping forward; no `except Exception` of a model may catch it."""


class SuspendedForward:
    """One forward of one batch.

    Attributes:
        layer: name of the layer in front of which it sleeps, None once it has finished.
        layer_input: first positional input of that layer.
        finished: True after the forward has returned.
    """

    def __init__(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.layer: str | None = None
        self.layer_input: object = None
        self.finished = False
        self._error: BaseException | None = None
        self._abandoned = False
        self._pauses: Callable[[str], bool] = lambda name: False
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        autocast = [
            (device, torch.get_autocast_dtype(device))
            for device in ("cpu", "cuda")
            if torch.is_autocast_enabled(device)
        ]
        self._thread = threading.Thread(
            target=self._run, args=(model, args, kwargs, autocast), daemon=True
        )

    def _run(self, model: nn.Module, args: tuple, kwargs: dict, autocast: list) -> None:
        self._go.acquire()
        _current.forward = self
        try:
            if not self._abandoned:
                with torch.no_grad():
                    for device, dtype in autocast:
                        torch.set_autocast_enabled(device, True)
                        torch.set_autocast_dtype(device, dtype)
                    model(*args, **kwargs)
        except _Abandoned:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self.finished, self.layer, self.layer_input = True, None, None
            del model, args, kwargs
            self._stopped.release()

    def advance(self, pauses: Callable[[str], bool]) -> None:
        """Runs on until a layer with pauses(name) or the end; re-raises what the model raises."""
        if self.finished:
            return
        self._pauses = pauses
        if self._thread.ident is None:
            self._thread.start()
        self._go.release()
        self._stopped.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def reached(self, name: str, layer_input: object) -> None:
        """Called by the hook in front of a layer, inside the forward's own thread."""
        if not self._pauses(name):
            return
        self.layer, self.layer_input = name, layer_input
        self._stopped.release()
        self._go.acquire()
        self.layer, self.layer_input = None, None
        if self._abandoned:
            raise _Abandoned

    def abandon(self) -> None:
        """Ends the forward where it sleeps."""
        if self.finished or self._thread.ident is None:
            return
        self._abandoned = True
        self._go.release()
        self._stopped.acquire()


def add_hooks(layers: dict[str, nn.Module]) -> list:
    """Lets forwards stop in front of these layers. Returns handles with `remove()`."""

    def stop_at(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            forward = getattr(_current, "forward", None)
            if forward is not None:
                forward.reached(name, args[0] if args else next(iter(kwargs.values())))

        return hook

    return [
        layer.register_forward_pre_hook(stop_at(name), with_kwargs=True)
        for name, layer in layers.items()
    ]


def abandon_all(forwards: Iterable[SuspendedForward | None]) -> None:
    """Ends every forward, whatever state it is in."""
    for forward in forwards:
        if forward is not None:
            forward.abandon()
