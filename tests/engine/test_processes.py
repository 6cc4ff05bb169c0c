"""What processes say to each other, where there is only one; several are met in tests/launch."""
from __future__ import annotations

import jax
import numpy as np
import pytest
from engine import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_lab.engine import mesh, processes


def test_a_process_alone_leads_and_hears_itself():
    assert processes.leads() and processes.gather(3, True).tolist() == [[3, 1]]
    processes.agree("the data", "anything")


@pytest.mark.parametrize("say", [processes.first, processes.each])
def test_what_is_made_is_returned_and_errors_are_raised(say):
    assert say(lambda: [1]) == [1]
    with pytest.raises(KeyError):
        say(lambda: {}["missing"])


def test_whole_brings_everything_to_the_host():
    there = NamedSharding(mesh.make(4), P("clients"))
    key = jax.random.split(jax.random.key(1, impl="rbg"), 4)
    tree = {"x": jax.device_put(np.arange(8.0), there), "key": jax.device_put(key, there), "host": np.arange(3)}
    found = processes.whole(tree)
    assert isinstance(found["x"], np.ndarray) and found["x"].tolist() == list(range(8)) and found["host"].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(key))
    assert jax.random.key_impl(found["key"]) == "rbg" and len(found["key"].devices()) == 1


def test_what_is_joined_is_whole_on_every_device():
    there = mesh.make(4)
    rows = np.arange(8.0)
    cut = jax.device_put(rows, NamedSharding(there, P("clients")))
    for x in (mesh.joined({"x": cut})["x"], mesh.joined(mesh.spread(there, {"x": rows}))["x"]):
        assert x.is_fully_replicated and len(x.devices()) == 4 and x.tolist() == rows.tolist()
    before = len(tiny.COMPILED)
    mesh.joined(jax.device_put(rows + 1, cut.sharding))
    assert len(tiny.COMPILED) == before
