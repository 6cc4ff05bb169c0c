"""The records that every file of fedjax_lab speaks.

A paper is written for ONE client and ONE server as pure functions over pytrees; the engine turns them into a program in which
thousands of clients train in one call. The letters in the shapes below: N clients in the population, S slots in a cohort, n
examples of one client, M examples in a flat array, B examples in a batch, C classes, R rounds in a segment.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any  # a pytree of arrays
Key = jax.Array  # a typed random key, jax.random.key
Batch = Mapping[str, jax.Array]  # arrays [B, ...] by name, and "mask" [B]: False marks padding


class Aux(NamedTuple):
    """What a loss returns beside its value.

    stats: the new value of the sub-tree `params["stats"]` (normalization statistics), or () where the model has none.
    metrics: scalars of this batch, by name.
    """

    stats: Tree = ()
    metrics: Mapping[str, jax.Array] = {}


class Task(NamedTuple):
    """A model with its loss: what is trained, apart from how.

    name: for messages and records.
    init: (key) -> params.
    apply: (params, batch, key=None) -> outputs [B, ...]; a key means training mode (dropout, batch statistics).
    loss: (params, batch, key) -> (scalar mean over the unmasked examples, Aux); differentiable in params.
    metrics: (outputs, batch) -> {name: [B]}, one value per example, always with "loss"; "accuracy" for classification.
    features, head: (params, batch, key=None) -> [B, F] and (params, features) -> outputs, where the model is split; else None.
    taps: (params, batch) -> {path of a layer's kernel: [B, P, d]}, in the order of the layers: what each is fed at the P places of an
        example where its kernel, of d entries per output, is applied; None where that is not known.
    own: (params, client) -> params with that client's architecture in use, where clients have different ones (models/several.py); else None.
    """

    name: str
    init: Callable[[Key], Tree]
    apply: Callable[..., Tree]
    loss: Callable[[Tree, Batch, Key], tuple[jax.Array, Aux]]
    metrics: Callable[[Tree, Batch], Mapping[str, jax.Array]]
    features: Callable[..., jax.Array] | None = None
    head: Callable[..., Tree] | None = None
    taps: Callable[[Tree, Batch], Mapping[str, jax.Array]] | None = None
    own: Callable[[Tree, jax.Array], Tree] | None = None


class Stream(NamedTuple):
    """One kind of examples of a whole population, without padding.

    Client i owns the rows `index[offset[i] : offset[i] + size[i]]` of every array in `examples`, or, without an index, the rows
    `offset[i] : offset[i] + size[i]` themselves.

    examples: {name: [M, ...]};  offset, size: int32 [N];  index: int32 [T] or None.
    """

    examples: Mapping[str, jax.Array]
    offset: jax.Array
    size: jax.Array
    index: jax.Array | None = None

    def rows(self, client: jax.Array, positions: jax.Array) -> jax.Array:
        """Rows of `examples` at these positions (0 .. size-1, any shape) of one client."""
        at = self.offset[client] + positions
        return at if self.index is None else self.index[at]


class Stages(NamedTuple):
    """Which of the clients' training examples are there when: T tasks one after the other, those of old tasks gone (continual learning).

    rounds: int32 scalar, how many a task takes; the last one does not end.  offset, size: int32 [T, N], as a Stream's;
    counts: float32 [T, N, C].
    """

    rounds: Any
    offset: jax.Array
    size: jax.Array
    counts: jax.Array


class Population(NamedTuple):
    """The clients' data and what is known of them at set-up.

    train: the clients' training examples.
    test: the clients' test examples; `test.examples` is the central test set.
    counts: float32 [N, C] training examples per class, or [N, 0] where there are no classes.
    manifest: what this population is (source, partition, clients, examples, hash), ready for JSON.
    public: {field: [P, ...]} examples that the server and all clients hold, {} if there are none.
    stages: of a sequence of tasks, whose training examples are all in `train`; None where the clients always have all of them.
    """

    train: Stream
    test: Stream
    counts: jax.Array
    manifest: Mapping[str, Any] = {}
    public: Mapping[str, jax.Array] = {}
    stages: Stages | None = None

    @property
    def clients(self) -> int:
        """N."""
        return self.train.size.shape[0]

    def at(self, clock: jax.Array) -> Population:
        """The population as it is in a round: with the training examples that are there then."""
        if self.stages is None:
            return self
        now = jnp.minimum(clock // self.stages.rounds, len(self.stages.size) - 1)
        offset, size, counts = (x[now] for x in self.stages[1:])
        return self._replace(train=self.train._replace(offset=offset, size=size), counts=counts, stages=None)


class Census(NamedTuple):
    """What is known of the clients at set-up, without their data.

    clients: N;  size: int32 [N] training examples, on the host;  classes: C, or 0;
    example: {field: shape and dtype} of one training example;  public: P, how many public examples there are.
    task_rounds: after how many rounds the training examples change, 0 where they do not.
    """

    clients: int
    size: Any
    classes: int = 0
    example: Mapping[str, jax.ShapeDtypeStruct] = {}
    public: int = 0
    task_rounds: int = 0

    def batch(self, rows: int = 1) -> Batch:
        """Zeros of the shape of a batch."""
        return {**{k: jnp.zeros((rows, *v.shape), v.dtype) for k, v in self.example.items()}, "mask": jnp.ones(rows, bool)}


class View(NamedTuple):
    """One client's window on a Stream, inside the mapped client function.

    client: int32 scalar, its place in the stream;  size: int32 scalar;  capacity: static upper bound of size over the population.
    poison: (batch) -> batch, what an attack makes of the examples, None where there is none on data.
    """

    stream: Stream
    client: jax.Array
    capacity: int
    poison: Callable[[Batch], Batch] | None = None

    @property
    def size(self) -> jax.Array:
        """Number of the client's examples, int32."""
        return self.stream.size[self.client]

    def take(self, positions: jax.Array, mask: jax.Array) -> Batch:
        """The examples at positions [B]; where mask [B] is False the row is arbitrary and must not count."""
        safe = jnp.where(mask, positions, 0)
        rows = self.stream.rows(self.client, safe)
        batch = {name: jnp.take(array, rows, axis=0, mode="clip") for name, array in self.stream.examples.items()}
        batch = {**batch, "mask": mask}
        return batch if self.poison is None else self.poison(batch)

    def whole(self) -> Batch:
        """All examples of the client, padded to the capacity."""
        positions = jnp.arange(self.capacity, dtype=jnp.int32)
        return self.take(positions, positions < self.size)


class Fresh(NamedTuple):
    """What a client gets that asks the server once more in mid-training.

    clock: int32 scalar, the round whose model it is;  message: {field: tree}, as in Method.broadcast.
    """

    clock: jax.Array
    message: Mapping[str, Tree]


class ClientData(NamedTuple):
    """What `local` knows of its client.

    id, clock: int32 scalars (who, and which round);  train, test: views;  counts: [C];
    allowance: int32 scalar, the most local steps that the engine grants (a straggler gets fewer).
    keep: what this client kept in the phase before it with the same cohort, () in the first.
    present: bool scalar, whether the client is in the round's cohort; in a phase over everyone it may not be.
    staleness: int32 scalar, how often the server was updated between sending its model and hearing this client; 0 in synchronous rounds.
    factor: float32 scalar, the weight that the schedule gives this upload; 1 in synchronous rounds.
    public: {field: [P, ...]}, the public examples.
    download: (steps) -> Fresh, what the server has when so many local steps are done, for methods that say `downloads`; called once, outside
        of loops. In synchronous rounds it is what was sent.
    roster: int32 [S], as in Cohort; nobody where there is no cohort.
    """

    id: jax.Array
    clock: jax.Array
    train: View
    test: View
    counts: jax.Array
    allowance: jax.Array
    keep: Tree = ()
    present: jax.Array | bool = True
    staleness: jax.Array | int = 0
    factor: jax.Array | float = 1.0
    public: Mapping[str, jax.Array] = {}
    download: Callable[[jax.Array], Fresh] | None = None
    roster: jax.Array | None = None

    @property
    def size(self) -> jax.Array:
        """Number of training examples, int32."""
        return self.train.size


class Cohort(NamedTuple):
    """Who was heard in a round: ids, mask, size, steps [S] in slot order, the population's size and the clock (round number).

    counts: [S, C] training examples per class of those who were heard, zero for the others.
    staleness: int32 [S], see ClientData; 0 in synchronous rounds.   public: {field: [P, ...]}, the public examples.
    roster: int32 [S], who started, heard or not, in the same order, -1 where nobody did.
    """

    ids: jax.Array
    mask: jax.Array
    size: jax.Array
    steps: jax.Array
    clients: int
    clock: jax.Array
    counts: jax.Array | None = None
    staleness: jax.Array | None = None
    public: Mapping[str, jax.Array] = {}
    roster: jax.Array | None = None


class Result(NamedTuple):
    """What one client returns.

    upload: {field: tree}. The field "model" is the change of the model, local minus received; compressors, robust rules and
        attacks act on it.
    weight: scalar for all fields, or {field: scalar or a tree of weights that broadcast against the field}.
    client: the client's new persistent row.
    keep: reaches this client's next phase of the same round, then dies.
    metrics: scalars by name, averaged over the cohort by the engine; "loss" is expected.
    """

    upload: Mapping[str, Tree]
    weight: Any
    client: Tree = ()
    keep: Tree = ()
    metrics: Mapping[str, jax.Array] = {}


class Wire(NamedTuple):
    """What a message field becomes on its way.

    init: (field) -> row, the sender's memory, persistent per client (error feedback), () if none.
    encode: (key, value, row) -> (code, row).   decode: (code) -> value of the same structure.
    bits: (code) -> int, or an array where it depends on the data: the size of this code.
    """

    init: Callable[[Tree], Tree]
    encode: Callable[[Key, Tree, Tree], tuple[Tree, Tree]]
    decode: Callable[[Tree], Tree]
    bits: Callable[[Tree], Any]


class Streaming(NamedTuple):
    """An aggregation rule that sees one upload at a time.

    zero: (value, weight) -> acc before anything was added, from arrays of the shapes to come;
    add: (acc, value, weight) -> acc, where weight 0 adds nothing;
    merge: (acc, acc) -> acc, associative;  finish: (acc) -> aggregate, defined (no NaN) when nothing was added.
    """

    zero: Callable[[Tree, Tree], Tree]
    add: Callable[[Tree, Tree, Any], Tree]
    merge: Callable[[Tree, Tree], Tree]
    finish: Callable[[Tree], Tree]


class Stacked(NamedTuple):
    """An aggregation rule that needs all uploads at once.

    combine: (stack [S, ...], weights [S], cohort) -> aggregate; weight 0 marks who was not heard.
    mix: (stack, weights, cohort) -> (stack, weights), of a rule that may stand before another one, which combines what this one mixed.
    tolerates: (n) -> int, how many attackers among n uploads it is made for, as it is configured; None where nothing is claimed.
    """

    combine: Callable[[Tree, jax.Array, Cohort], Tree]
    mix: Callable[[Tree, jax.Array, Cohort], tuple[Tree, jax.Array]] | None = None
    tolerates: Callable[[int], int] | None = None


class Sight(NamedTuple):
    """What attackers see before they forge: all uploads of the round, as they arrived.

    own: tree [A, ...], the members' own honest changes of the field "model", for as many members as can be in a cohort;  seats: int32 [A],
    where in the stack they are, S for nowhere;  stack: tree [S, ...], everyone's;  weight: as a rule gets it, 0 for who was not heard;
    members: bool [S], the attackers heard;  honest: bool [S], the others heard;  rank: int32 [S], which of the population's attackers a
    member is, from 0;  cohort: who was heard;  rule: (stack) -> aggregate, what the server will do.
    """

    own: Tree
    seats: jax.Array
    stack: Tree
    weight: Tree
    members: jax.Array
    honest: jax.Array
    rank: jax.Array
    cohort: Cohort
    rule: Callable[[Tree], Tree]


class Attack(NamedTuple):
    """What one group of malicious clients does; neither the method nor an honest client knows.

    share: of the population's clients, in the group.
    poison: (batch, rank, classes) -> batch, what a member's training examples become; rank as in Sight.
    idle: whether members do not train.
    forge: (key, sight) -> tree whose leaves broadcast against those of `sight.own`: what members send in place of the field "model".
    probe: (batch, classes) -> (batch, counted [B]): test inputs as the attackers change them, with the labels that they want, and which
        of them count; "attack_success" is the accuracy on those.
    """

    share: Any
    poison: Callable[[Batch, jax.Array, int], Batch] | None = None
    idle: Any = False
    forge: Callable[[Key, Sight], Tree] | None = None
    probe: Callable[[Batch, int], tuple[Batch, jax.Array]] | None = None


class Adversary(NamedTuple):
    """Who attacks and how. attacks: groups without common members;  key: draws the members, once for a run."""

    attacks: tuple[Attack, ...]
    key: Key


class Info(NamedTuple):
    """A registered system's card: what `python -m fedjax_lab.methods` prints.

    refuses: {part: why} of the parts (wire_up, wire_down, aggregator, server, participation) that its mathematics does not allow.
    schedule: the schedule that it was published for, as --schedule has it; several joined by " or ", the first by default.
    several: whether clients may have models of different architectures.
    """

    name: str
    kind: str  # method, wire, aggregator, attack, privacy, model, audit or analytics
    family: str
    paper: str
    year: int
    summary: str
    stateful: bool = False
    refuses: Mapping[str, str] = {}
    schedule: str = "sync"
    several: bool = False


class Release(NamedTuple):
    """What a round tells of its clients under differential privacy, and how that is to be counted.

    noise: deviation of the Gaussian noise over the sensitivity of what is noised;  delta: see accountant;  accountant: auto, rdp, pld, none.
    cohort: expected clients in a round;  population: of how many, those of the run where None;  noised: fields of the upload that are
    clipped and noised.
    event: (rounds, apart) -> the dp_accounting event of so many rounds, for a client that takes part every `apart` rounds; None where every
    round's sum has fresh Gaussian noise.   local: every client adds noise to its own upload, so that it matters for nobody who else is drawn.
    """

    noise: float
    delta: float
    accountant: str
    cohort: int
    population: int | None
    noised: tuple[str, ...]
    event: Callable[[int, int], Any] | None = None
    local: bool = False


class Phase(NamedTuple):
    """One exchange between the server and the cohort; see Method for the fields.

    everyone: the exchange is with all N clients of the population, whoever was drawn.
    when: (key, clock) -> bool scalar: in which rounds the exchange takes place; all phases of a round get the same key. Always where None.
    now: for an exchange after the first: it is with the server as it then is, even where the clients were sent an earlier model in the first.
    """

    local: Callable[..., Result]
    broadcast: Callable[..., Mapping[str, Tree]]
    up: Mapping[str, Wire]
    down: Mapping[str, Wire]
    aggregate: Mapping[str, Streaming | Stacked]
    serve: Callable[..., Tree]
    everyone: bool = False
    when: Callable[[Key, jax.Array], jax.Array] | None = None
    now: bool = False


def _params_as_server(key: Key, params: Tree, census: Census) -> Tree:
    return params


def _no_row(key: Key, params: Tree, facts: Any) -> Tree:
    return ()


def _send_server(server: Tree, client: jax.Array, clock: jax.Array) -> Mapping[str, Tree]:
    return {"model": server}


def _add_change(key: Key, server: Tree, aggregate: Mapping[str, Tree], cohort: Cohort) -> Tree:
    return jax.tree.map(lambda x, u: x + u, server, aggregate["model"])


class Method(NamedTuple):
    """A federated algorithm: one client, one server, pure functions. FedAvg is `local` and nothing else.

    local: (key, message, client, data) -> Result, for ONE client.
    init_server: (key, params, census) -> server, any pytree; by default the parameters themselves.
    init_client: (key, params, facts) -> the persistent row of ONE client, () if stateless; facts are id, size and counts.
    broadcast: (server, client_id, clock) -> {field: tree}, the message to one client; by default {"model": server}.
    serve: (key, server, {field: aggregate}, cohort) -> server; by default the mean change is added.
    aggregate: a rule per field of the upload, the weighted mean where none is named.
    up, down: a Wire per field of upload and message, the identity where none is named.
    phases: for several exchanges in one round, used instead of the fields local .. down above.
    steps: (size [S]) -> int32 [S], the local steps of clients of these sizes, for sorting, balancing and stragglers.
    deploy: (server) -> params, what is evaluated as the global model.
    personal: (key, server, client, data) -> params, what is evaluated as this client's own model; None if there is none.
    task: what its models are: initialized and evaluated by it; None for the task that the method was made for.
    release: what a round tells of its clients; None without differential privacy.
    downloads: whether `local` downloads in mid-training; see ClientData.
    watch: (cohort) -> {name: scalar}, what a round reports of who was heard in it.
    info: the card.
    """

    local: Callable[..., Result] | None = None
    init_server: Callable[..., Tree] = _params_as_server
    init_client: Callable[..., Tree] = _no_row
    broadcast: Callable[..., Mapping[str, Tree]] = _send_server
    serve: Callable[..., Tree] = _add_change
    aggregate: Mapping[str, Streaming | Stacked] = {}
    up: Mapping[str, Wire] = {}
    down: Mapping[str, Wire] = {}
    phases: tuple[Phase, ...] = ()
    steps: Callable[[jax.Array], jax.Array] = lambda size: size
    deploy: Callable[[Tree], Tree] = lambda server: server
    personal: Callable[..., Tree] | None = None
    task: Task | None = None
    release: Release | None = None
    downloads: bool = False
    watch: Callable[[Cohort], Mapping[str, jax.Array]] = lambda cohort: {}
    info: Info = Info("own", "method", "own", "", 0, "")

    @property
    def exchanges(self) -> tuple[Phase, ...]:
        """The phases of a round, in order."""
        if self.phases:
            return self.phases
        return (self.phase(),)

    def phase(self, **changes: Any) -> Phase:
        """The fields local .. serve as a Phase, with changes."""
        return Phase(self.local, self.broadcast, self.up, self.down, self.aggregate, self.serve)._replace(**changes)

    def rephased(self, phases: Sequence[Phase], **fields: Any) -> Method:
        """The method with other phases in place of its `exchanges`, as many as there are, and other fields."""
        if self.phases:
            return self._replace(phases=tuple(phases), **fields)
        shared = {name: value for name, value in phases[0]._asdict().items() if name in Method._fields}
        return self._replace(**shared, **fields)


class Facts(NamedTuple):
    """What a client's first row may depend on: id (int32), size (int32), counts [C]; example: as in Census."""

    id: jax.Array
    size: jax.Array
    counts: jax.Array
    example: Mapping[str, jax.ShapeDtypeStruct] = {}


class Draw(NamedTuple):
    """Who was drawn for a round.

    state: the sampler's, after this round;  ids: int32 [S], distinct where the mask holds;  mask: bool [S], who starts.
    heard: bool [S], whose upload arrives, among those who start: the others work in vain and keep their old row.
    allowance: int32 [S], the most local steps.   metrics: {name: scalar}, such as "overflow".
    share: float32 [S], where below 1 the share of its own steps that a client may do, rounded, at least one step.
    base: int32 [S], the round whose model each was sent, at most `versions` - 1 before this one; None for this very round.
    factor: float32 [S], see ClientData.
    latest: int32 [S, K + 1], the newest round there was when each had done 0, 1, .. K local steps, for methods that download in mid-training.
    """

    state: Tree
    ids: jax.Array
    mask: jax.Array
    heard: jax.Array
    allowance: jax.Array
    metrics: Mapping[str, jax.Array] = {}
    share: jax.Array | float = 1.0
    base: jax.Array | None = None
    factor: jax.Array | float = 1.0
    latest: jax.Array | None = None


class Participation(NamedTuple):
    """Who takes part in which round, pure in the round.

    slots: S, static.   init: (key, census) -> state.   draw: (key, state, clock) -> Draw.
    versions: how many of the last models are kept, this round's included; more than 1 where clients were sent an earlier one.
    """

    slots: int
    init: Callable[[Key, Census], Tree]
    draw: Callable[[Key, Tree, jax.Array], Draw]
    versions: int = 1


class Links(NamedTuple):
    """Who hears whom among N nodes, and the weight of it: the matrix W [N, N] of a gossip step x <- W x, neighbor by neighbor.

    ids: int32 [N, K], whom each node hears beside itself, its own id where it hears fewer;  weight: float32 [N, K], zero there.
    own: float32 [N], the diagonal.
    """

    ids: jax.Array
    weight: jax.Array
    own: jax.Array


class Topology(NamedTuple):
    """The graph of a gossip, which may be another one in every round.

    nodes: N;  degree: K, the most neighbors of a node;  at: (arrays, key, clock) -> Links of a round;  arrays: what it is made from.
    gap: 1 minus how much a step shrinks the distance to the mean, in the mean square where graphs are drawn.
    directed: the columns of W sum to one and its rows need not; otherwise both do, and W is symmetric.
    """

    name: str
    nodes: int
    degree: int
    at: Callable[[Tree, Key, jax.Array], Links]
    arrays: Tree
    gap: float
    directed: bool = False


class State(NamedTuple):
    """Everything that evolves in a run, in one pytree: what a checkpoint holds.

    server: the method's;  clients: rows [N, ...];  wires: the up wires' rows, per phase and field, [N, ...];
    participation: the sampler's;  key: the run's root key, constant;  versions: the server's last states [V, ...], () if only one is kept.
    """

    server: Tree
    clients: Tree
    wires: Tree
    participation: Tree
    key: Key
    versions: Tree = ()


class Simulation(NamedTuple):
    """A method lowered to a program. All functions are pure; `segment` donates the state it is given.

    world: everything that does not evolve, an argument of every call, never a closure.
    init: (world, key) -> State.
    segment: (world, state, clock, rounds, due=True) -> (state, Record): `rounds` rounds in one device call, then an evaluation where one
        is due; the record's evaluation is zeros where not.
    length: the most rounds one segment may have.
    plan: what will run where, for people: devices, chunk, lanes, clients, parameters, bytes.
    costs: () -> per phase, what local training costs in operations; see engine.ledger.
    deploy: (state) -> params, the global model.   fields: () -> the names of what an upload consists of.
    """

    world: Tree
    init: Callable[[Tree, Key], State]
    segment: Callable[..., tuple[State, Record]]
    length: int
    plan: Mapping[str, Any]
    costs: Callable[[], Sequence[Any]] = tuple
    deploy: Callable[[State], Tree] = lambda state: state.server
    fields: Callable[[], Sequence[str]] = tuple


class Record(NamedTuple):
    """What a segment reports.

    rounds: {name: [R, ...]} per round, rows beyond the rounds asked for are zero: "loss" [R], "ids", "mask" (who started), "heard" and
        "finite" [R, S], "sound" [R] (whether all aggregates were finite), "bytes_up" and "bytes_down" [R, S] uint32, "steps<p>" [R, S] taken
        in phase p, the method's and the sampler's own metrics [R]; where a phase is with everyone, "all_finite",
        "all_bytes_up", "all_bytes_down" and "all_steps<p>" [R, N] of such phases, by id.
    evaluation: {name: scalar}, the models after the last round.
    """

    rounds: Mapping[str, jax.Array]
    evaluation: Mapping[str, jax.Array]
