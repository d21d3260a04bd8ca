"""Random graphs whose bytes or protobuf fields were changed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from google.protobuf.message import Message

from benchmarks.random_graphs.judge import build

_NUMBERS = (-1, 0, 1, 2, 7, 255, 2**31 - 1, 2**31, 2**62, -(2**63))
_TEXTS = ("", "x0", "t0", "\x00", "a" * 300, "Quant", "MatMul", "ai.onnx", "UINT99", "ü")


def damaged(seed: int) -> bytes:
    """The bytes of a random graph after a few changes: of bytes, or of fields anywhere in it."""
    choose = random.Random(seed)
    _, model = build(seed)
    if seed % 2:
        messages = list(_messages(model))
        for _ in range(choose.randint(1, 3)):
            _change(choose.choice(messages), choose)
        return model.SerializeToString()
    data = bytearray(model.SerializeToString())
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data))
        how = choose.random()
        if how < 0.7:
            data[place] = choose.randrange(256)
        elif how < 0.85:
            del data[place : place + choose.randint(1, 9)]
        else:
            data[place:place] = data[place : place + choose.randint(1, 40)]
        if not data:
            break
    return bytes(data)


def _messages(message: Message) -> Iterator[Message]:
    """A message and all messages inside it."""
    yield message
    for description, value in message.ListFields():
        if description.message_type is not None:
            inner = [value] if isinstance(value, Message) else value
            for one in inner:
                yield from _messages(one)


def _change(message: Message, choose: random.Random) -> None:
    """Changes one field: another value, one element less, or one twice."""
    fields = message.ListFields()
    if not fields:
        return
    description, value = choose.choice(fields)
    name = description.name
    if isinstance(value, Message):
        message.ClearField(name)
    elif isinstance(value, str):
        setattr(message, name, choose.choice(_TEXTS))
    elif isinstance(value, bytes):
        setattr(message, name, value[: choose.randrange(len(value) + 1)])
    elif isinstance(value, float):
        setattr(message, name, choose.choice([0.0, -1.0, float("nan"), float("inf"), 1e-40]))
    elif isinstance(value, int):
        try:
            setattr(message, name, choose.choice(_NUMBERS))
        except ValueError:  # the field holds fewer bits
            setattr(message, name, 1)
    elif len(value) and choose.random() < 0.5:
        del value[choose.randrange(len(value))]
    elif len(value):
        value.append(value[choose.randrange(len(value))])
