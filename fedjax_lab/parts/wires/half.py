"""Sixteen bits an entry, or all that there are."""
from __future__ import annotations

from typing import Literal

from fedjax_lab import rules
from fedjax_lab.parts.wires import codes
from fedjax_lab.registry import part
from fedjax_lab.types import Wire


@part(kind="wire", family="communication", paper="Mixed Precision Training", year=2018)
def half(format: Literal["bfloat16", "float16"] = "bfloat16") -> Wire:
    """Every entry cast to sixteen bits.

    Args:
      format: bfloat16 keeps the range of float32 and 8 bits of its precision, float16 keeps 11 bits and overflows at 65,504.
    """

    def encode(key, value, row):
        return ([x.astype(format) for x in value], codes.Form(tuple(x.dtype for x in value))), row

    def decode(code):
        return [x.astype(dtype) for x, dtype in zip(code[0], code[1].facts, strict=True)]

    return codes.on_moving(Wire(lambda field: (), encode, decode, codes.bits_of))


identity = part(kind="wire", family="communication", paper="Communication-Efficient Learning of Deep Networks from Decentralized Data", year=2017)(
    rules.identity)
