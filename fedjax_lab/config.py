"""The configuration of a run: one record that flags, Python calls, files and messages share."""
from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_type_hints

from fedjax_lab import spec
from fedjax_lab.spec import Count, Positive, Range, Share


def _field(default: Any, text: str, free: bool = False) -> Any:
    """A setting with its help; a free one does not change the result, so a run may be continued with another value."""
    return dataclasses.field(default=default, metadata={"help": text, "free": free})


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run is made of. Every field is a flag of `experiments.train`, with the help written here."""

    method: str = _field("fedavg", "the algorithm; --list prints all")
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = _field("digits_mlp", "SOURCE_MODEL[:arg=value,...], arguments of the source or of the model; further models joined by '+' are the clients' in turn")
    partition: str | None = _field(
        None, "who owns which example, NAME[:VALUE][,arg=value...]; by default natural where the source has natural clients, community for a graph, else dirichlet:0.3"
    )
    partition_file: str | None = _field(None, "an .npz whose `idx` [clients, n] names the examples of each client, padded with -1; instead of --partition")
    wire_up: str | None = _field(None, "what a client's change goes through on its way up, NAME[:VALUE][,arg=value...], joined by '+'; --list prints them")
    wire_down: str | None = _field(None, "what the model goes through on its way down")
    aggregator: str | None = _field(None, "the rule that makes one change of the cohort's, instead of the method's own mean")
    server: str | None = _field(None, "the server optimizer that takes the step, such as adam:lr=0.01")
    clients: Count | None = _field(None, "number of clients; by default 100, or all natural ones")
    cohort: Count = _field(10, "clients in a round; on a virtual clock those in training (buffered, ticks, compass) or polled (polling)")
    init: str | None = _field(None, "where the model starts: public:steps=600 (trained on the public examples first) or file:PATH[,fresh=head] (safetensors)")
    augment: str | None = _field(None, "changes of the training images, drawn anew in every step, joined by '+': crop:4+flip+rotate:15+noise:0.1")
    stats: Literal["averaged", "local", "frozen"] = _field(
        "averaged", "normalization statistics: part of the model, every client's own affair, or left as they were made"
    )
    participation: str = _field(
        "uniform", "who takes part, NAME[:VALUE][,arg=value...], and what befalls them joined to it by '+': poisson+dropout:0.1"
    )
    schedule: str | None = _field(
        None, "in what order clients and server act: sync in rounds, buffered, ticks, polling and compass[:arg=value,...] on a virtual clock, gossip[:arg=value,...] without a server, vertical among parties; "
        "by default what the method was published for"
    )
    graph: str | None = _field(None, "who talks to whom in gossip, NAME[:VALUE][,arg=value...], by default ring; what is drawn once is drawn from --data_seed")
    attack: str | None = _field(None, "what malicious clients do, NAME[:VALUE][,arg=value...] with share=, joined by '+'; --list prints them")
    privacy: str | None = _field(None, "what hides clients from who sees the model, or single uploads from the server, NAME[:VALUE][,arg=value...], joined by '+': secagg:bits=16, or dp-fedavg:noise=1.1,clip=0.5")
    allow_untested: bool = _field(False, "run a combination that no paper describes, such as a method under another schedule than its own", free=True)
    rounds: Count = _field(400, "rounds to train")
    target_accuracy: Share | None = _field(None, "stop when the global test accuracy reaches this")
    eval_every: Count = _field(20, "rounds between two evaluations; they run in one device call")
    population: Literal["device", "host", "disk"] = _field(
        "device", "where the clients' data are: on the devices, or in host memory or files, from where each segment's clients travel", free=True
    )
    client_state: Literal["device", "host", "disk"] = _field("device", "where the clients' rows of a stateful method are between segments")
    eval_clients: Count | None = _field(None, "how many clients the per-client evaluation looks at; all by default")
    client_test: Annotated[float, Range(0, 1, "both")] | None = _field(
        None, "hold out this share of each client's own examples as its test set; by default test sets are drawn from the central test set"
    )
    seed: Annotated[int, Range(0, 2**32 - 1)] = _field(0, "of the model, the cohorts and the training")
    data_seed: Annotated[int, Range(0, 2**32 - 1)] = _field(0, "of the partition and the client test sets, apart from --seed")
    chunk: Literal["auto"] | Count = _field("auto", "clients that train side by side on a device, or auto", free=True)
    devices: Literal["auto"] | Count = _field("auto", "devices to use, a power of two, or auto for all; CPU cores count as devices", free=True)
    model_devices: Count = _field(1, "devices that share one model, each with a part of it, where one device is too small for it", free=True)
    lanes: Count = _field(8, "partial sums of an aggregate, a power of two of at least the devices; the result's bits belong to this number")
    precision: Literal["default", "float32", "tensorfloat32", "bfloat16"] = _field("default", "of matrix products")
    data_dir: str | None = _field(None, "folder of the data sets; by default the environment's FEDJAX_LAB_DATA", free=True)
    cache_dir: str | None = _field(None, "folder for decoded data and compiled programs; by default the user's cache folder", free=True)
    checkpoint_every: Count | str = _field("5m", "rounds (100) or minutes (5m) between two checkpoints; one is written at the end and at SIGTERM too", free=True)
    keep: Count = _field(2, "how many checkpoints stay", free=True)
    max_segment_seconds: Positive = _field(10.0, "about the longest device call, in which a SIGTERM has to wait", free=True)


def make(values: Mapping[str, Any]) -> Config:
    """A Config from text or Python values, typed and checked.

    Raises:
      ValueError: an unknown field, or an ill-typed or out-of-range value, in one line that names it and what is valid.
    """
    kinds = get_type_hints(Config, include_extras=True)
    unknown = set(values) - set(kinds)
    if unknown:
        raise ValueError(f"unknown setting '{min(unknown)}'; valid: {spec.nearest(min(unknown), kinds)}")
    typed = {k: v if k == "options" else spec.convert(kinds[k], v, f"--{k}") for k, v in values.items() if v is not None}
    config = Config(**typed)
    interval(config.checkpoint_every)
    return config


def interval(text: int | str) -> tuple[float, float]:
    """(rounds, seconds) between two checkpoints, one of them infinite.

    Raises:
      ValueError: neither a number of rounds nor of minutes.
    """
    if isinstance(text, int):
        return text, math.inf
    minutes = re.fullmatch(r"(\d+|\d*\.\d+)m", text)
    if not minutes:
        raise ValueError(f"--checkpoint_every: '{text}' is not valid; expected rounds (100) or minutes (5m)")
    return math.inf, 60 * float(minutes[1])


def fields() -> list[dataclasses.Field]:
    """The fields that are flags."""
    return [f for f in dataclasses.fields(Config) if f.name != "options"]


def flags(config: Config) -> list[str]:
    """The command-line flags that make this configuration, the defaults left out."""
    changed = [f"--{f.name}={getattr(config, f.name)}" for f in fields() if getattr(config, f.name) != f.default]
    return changed + [f"--set={k}={'/'.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in config.options.items()]
