from __future__ import annotations

import functools
import math
from typing import Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fedjax_lab import spec
from fedjax_lab.spec import Count, NonNegative, Positive, Range, Share

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
words = st.from_regex(r"[a-zA-Z0-9./_-]{1,8}", fullmatch=True)


def factory(task, key, lr: Positive = 0.1, *, epochs: Count = 1, batch: Count | Literal["full"] = 10, share: Share = 0.5,
            taps: tuple[float, ...] = (1.0,), kind: Literal["mean", "median"] = "mean", path: str | None = None, on: bool = False,
            loss=None):
    """Does nothing.

    Args:
      task: not an option.
      lr: the client's rate,
        in steps.
      epochs, batch: of local training.

    Returns:
      epochs: not help.
    """


def needy(*, path: str, size: int):
    return path, size


@given(names, st.none() | words, st.dictionaries(names, words, max_size=4))
def test_parse_reads_what_was_written(name, bare, values):
    items = ([bare] if bare is not None else []) + [f"{k}={v}" for k, v in values.items()]
    assert spec.parse(f"{name}:{','.join(items)}" if items else name) == (name, (bare,) if bare is not None else (), values)
    if bare is None and values:
        assert spec.parse(f"{name},{','.join(items)}") == (name, (), values)


@given(st.lists(names, min_size=1, max_size=4), st.floats(1e10, 1e20))
def test_chain_splits_between_items_only(items, x):
    texts = [f"{item}:{x:e},b={x:e}" for item in items]
    assert spec.chain("+".join(texts)) == tuple(texts)
    assert spec.chain("") == ()


@pytest.mark.parametrize("text", ["", ":1", "=1", "a,1", "a:1,2", "a:b=1,b=2", "a:", "a:1,,c=2", "a=1"])
def test_parse_refuses_with_one_line(text):
    with pytest.raises(ValueError, match="^[^\n]*$"):
        spec.parse(text)


def test_bind_types_every_kind():
    texts = {"lr": "0.5", "epochs": "3", "batch": "full", "share": "1", "taps": "1/2.5/3", "kind": "median", "path": "none",
             "on": "yes"}
    typed = spec.bind(factory, (), texts)
    assert list(typed) == list(texts) and list(typed.values()) == [0.5, 3, "full", 1.0, (1.0, 2.5, 3.0), "median", None, True]
    assert [type(v) for v in typed.values()] == [float, int, str, float, tuple, str, type(None), bool]
    assert spec.bind(factory, ("2",), {"batch": "7"}) == {"lr": 2.0, "batch": 7}
    assert spec.bind(factory, (), {"lr": 1, "on": False, "taps": [1, 2]}) == {"lr": 1.0, "on": False, "taps": (1.0, 2.0)}
    assert spec.bind(factory, (), {"path": "a/b.npz", "lr": "inf"}) == {"path": "a/b.npz", "lr": math.inf}


@pytest.mark.parametrize("values, says", [
    ({"lr": "0"}, "option 'lr' of 'factory': '0' is not valid; expected float > 0"),
    ({"lr": "x"}, "'x' is not valid; expected float > 0"),
    ({"lr": "nan"}, "'nan' is not valid"),
    ({"epochs": "1.5"}, "'1.5' is not valid; expected int >= 1"),
    ({"epochs": 1.5}, "'1.5' is not valid"),
    ({"epochs": True}, "'True' is not valid"),
    ({"batch": "0"}, "'0' is not valid; expected int >= 1 or one of full"),
    ({"share": "1.1"}, "expected float >= 0 and <= 1"),
    ({"taps": "1/x"}, "'1/x' is not valid; expected float, several as a/b/c"),
    ({"kind": "max"}, "expected one of mean, median"),
    ({"on": "2"}, "expected true/false"),
    ({"epoch": "2"},
     "'factory' has no option 'epoch'; valid: lr, epochs, batch, share, taps, kind, path, on; did you mean 'epochs'?"),
    ({"loss": "2"}, "has no option 'loss'"),
])
def test_bind_names_option_value_and_choices(values, says):
    with pytest.raises(ValueError) as error:
        spec.bind(factory, (), values)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_bind_counts_and_requires():
    for positional, values, says in [(("1",), {"lr": "2"}, "gets option 'lr' twice"), (("1",) * 9, {}, "at most 8 values"),
                                     ((), {"lrr": "1"}, "did you mean 'lr'")]:
        with pytest.raises(ValueError, match=says):
            spec.bind(factory, positional, values)
    with pytest.raises(ValueError, match="'needy' needs option 'size' .int."):
        spec.bind(needy, ("x",))
    assert spec.bind(needy, ("x", "3")) == {"path": "x", "size": 3}


def test_options_are_the_signature():
    found = {o.name: o for o in spec.options(factory)}
    assert list(found) == ["lr", "epochs", "batch", "share", "taps", "kind", "path", "on"]
    assert found["lr"] == spec.Option("lr", "float > 0", 0.1, "the client's rate, in steps.")
    assert found["epochs"].help == found["batch"].help == "of local training."
    assert found["path"].type == "text or none" and found["path"].default is None and not found["path"].required
    assert spec.options(needy)[0] == spec.Option("path", "text", None, "", True)
    assert [o.default for o in spec.options(functools.partial(factory, epochs=4))][1] == 4


def test_choose_and_build_go_through_the_registry():
    registry = {"needy": needy, "other": factory}
    assert spec.build("thing", "needy:x,size=2", registry) == ("x", 2)
    with pytest.raises(ValueError, match="unknown thing 'neady'; valid: needy, other; did you mean 'needy'?"):
        spec.build("thing", "neady:x", registry)


@given(st.floats(-2, 2), st.sampled_from(["", "low", "high", "both"]))
def test_range_holds_as_it_reads(x, ends):
    words = str(Range(0, 1, ends)).split(" and ")
    assert Range(0, 1, ends).holds(x) == all(eval(f"{x!r} {word}") for word in words)
    assert not NonNegative.__metadata__[0].holds(-1e-9) and NonNegative.__metadata__[0].holds(0)
