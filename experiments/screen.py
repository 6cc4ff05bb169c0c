"""What a person sees of a run: the plan, a progress bar or plain lines, the summary, the catalog."""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping

import jax
from absl import flags

from fedjax_lab import config as configs
from fedjax_lab import schedules, spec
from fedjax_lab.run import Prepared, Run


def define(names: Collection[str]) -> None:
    """A flag for each of these fields of Config, with the field's help."""
    for field in configs.fields():
        if field.name in names:
            make = flags.DEFINE_bool if isinstance(field.default, bool) else flags.DEFINE_string
            make(field.name, None, f"{field.metadata['help']} (default: {field.default})", flag_values=flags.FLAGS)


def together(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A program's `main` for a run of several processes: one that fails unexpectedly leaves at once, so that the others hear of it;
    JAX's own way out would wait for them."""

    def run(argv: list[str]) -> int:
        try:
            return main(argv)
        except Exception as error:
            if not jax.distributed.is_initialized():
                raise
            if isinstance(error, jax.errors.JaxRuntimeError):
                print("error: a device call failed. If another process of this run has ended, its own output says why. "
                      f"JAX says: {str(error).splitlines()[0]}", file=sys.stderr)
            else:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    return run


def quiet() -> None:
    """Leaves the screen to process 0; errors are told by all."""
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def answer(argv: list[str], work: Callable[[], int]) -> int:
    """The exit status of a program: what its work returns, or 2 for a request that is not valid, which is one line."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected argument '{argv[1]}'; settings are flags, --name=value")
        return work()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a wrong flag as one line and exit status 2; --help shows all flags of the program, whoever defined them."""
    for name in own_flags():
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        print(f"error: unknown flag --{error.flagname}; valid: {spec.nearest(error.flagname, own_flags())}", file=sys.stderr)
        sys.exit(2)
    except (flags.Error, ValueError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        sys.exit(2)


def own_flags() -> list[str]:
    """The flags of this program, without those of the libraries it uses."""
    modules = flags.FLAGS.flags_by_module_dict().items()
    return sorted(flag.name for module, found in modules if not module.startswith("absl") for flag in found)


def size(number: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def plan(prepared: Prepared) -> str:
    """What will run where."""
    config, p = prepared.config, prepared.simulation.plan
    lines = [
        (f"{config.method} on {config.task}: {p['parameters']:,} parameters, {p['clients']:,} clients, {p['cohort']:,} in a round, "
         f"{config.rounds} rounds"),
        f"partition {prepared.population.manifest.get('partition')}, {prepared.population.train.size.sum():,} training examples",
        f"{p['devices']} {p['platform']} device{'s' * (p['devices'] > 1)}, chunk {p['chunk']}, {p['lanes']} lanes, "
        f"about {size(p['memory_bytes'])} (data {size(p['data_bytes'])}, client table {size(p['table_bytes'])}"
        + f", uploads of a round {size(p['stack_bytes'])}" * (p["stack_bytes"] > 0) + ")",
    ]
    mixed = f"gossip on graph {p['graph']}, at most {p['degree']} neighbors, spectral gap {p['gap']:.4g}, steps {p['gossip_steps']}" if "graph" in p else ""
    why = schedules.untested(config, prepared.method)
    return "\n".join([*lines, *filter(None, [mixed, prepared.privacy, why and f"untested: {why}"])])


class Live:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, prepared: Prepared):
        self._cohort, self._rounds, self._before, self._bar = prepared.simulation.plan["cohort"], prepared.config.rounds, None, None

    def add(self, row: Mapping[str, float]) -> None:
        """Shows one evaluation."""
        text = describe(row)
        if self._before is None:
            if sys.stderr.isatty():
                from tqdm import tqdm

                self._bar = tqdm(total=self._rounds, unit="round", dynamic_ncols=True)
        else:
            rounds, seconds = row["round"] - self._before["round"], row["seconds"] - self._before["seconds"]
            text += f"  {self._cohort * rounds / max(seconds, 1e-9):,.0f} clients/s"
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.set_postfix_str(text)
            self._bar.update(row["round"] - self._bar.n)
        self._before = row

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()


def describe(row: Mapping[str, float]) -> str:
    """One evaluation in a line."""
    parts = [f"round {row['round']:5d}", *([f"time {row['time']:.5g}"] if "time" in row else [])]
    if "test_accuracy" in row:
        parts.append(f"accuracy {row['test_accuracy']:.4f}")
    parts.append(f"loss {row['test_loss']:.4f}")
    if "personal_client_test_accuracy_mean" in row:
        parts.append(f"personal {row['personal_client_test_accuracy_mean']:.4f}")
    if "consensus_distance" in row:
        parts.append(f"consensus distance {row['consensus_distance']:.3g}")
    return "  ".join(parts)


def summary(run: Run, folder: object) -> None:
    """The last evaluation as a table, and where the files are."""
    last = run.history[-1]
    names = {
        "test_accuracy": "global model, central test set: accuracy",
        "test_loss": "global model, central test set: loss",
        "client_test_accuracy_mean": "global model, clients' test sets: mean accuracy",
        "client_test_accuracy_worst_decile": "global model, clients' test sets: worst decile",
        "client_test_accuracy_std": "global model, clients' test sets: deviation",
        "personal_client_test_accuracy_mean": "personal models, clients' test sets: mean accuracy",
        "personal_client_test_accuracy_worst_decile": "personal models, clients' test sets: worst decile",
        "personal_client_test_accuracy_std": "personal models, clients' test sets: deviation",
        "personal_client_test_accuracy_q0": "personal models, clients' test sets: worst",
        "consensus_distance": "nodes' models: mean squared distance to their average",
    }
    rows = [(text, f"{last[name]:.4f}") for name, text in names.items() if name in last]
    best = max((row["test_accuracy"], -row["round"]) for row in run.history) if "test_accuracy" in last else None
    rows += [("best global accuracy", f"{best[0]:.4f} in round {-best[1]}")] if best else []
    if "time" in last:
        left = ", ".join(f"{last[name]} {name}" for name in ("uploads", "rejected", "waiting", "training"))
        rows += [("virtual time", f"{last['time']:.5g}"), ("by then consumed, refused, in the buffer; clients at work", left)]
    rows += [("rounds", str(last["round"])), ("seconds, compilation apart", f"{last['seconds']:.1f}"), ("compilation", f"{run.compile_seconds:.1f}")]
    rows += [("epsilon", f"{last['epsilon']:.4g}")] if "epsilon" in last else []
    rows += [("bytes up, down", f"{size(last['bytes_up'])}, {size(last['bytes_down'])}")]
    width = max(len(text) for text, _ in rows)
    print("\n".join(["", *(f"{text:<{width}}  {value}" for text, value in rows), "", f"{folder}: metrics.jsonl, curves.png, partition.png, checkpoint"]))


def catalog() -> None:
    """Tasks, partitions, augmentations, participation and methods, with their options."""
    from fedjax_lab import events, models, registry, schedules
    from fedjax_lab.data import scenario, sources
    from fedjax_lab.parts.transforms import augment

    print("tasks: SOURCE_MODEL[:arg=value,...]")
    print("  sources  ", ", ".join(sources.SOURCES), "and any tensorflow-datasets folder by name (mnist, cifar10, ...)")
    print("  models   ", ", ".join([*models.MODELS, "quadratic"]))
    print("partitions: NAME[:VALUE][,arg=value...], selections and shifts joined to it by '+'")
    for name, factory in scenario.ITEMS.items():
        print(f"  {name:<18} {options(factory) if factory else ''}")
    print("augmentations: NAME[:VALUE][,arg=value...], joined by '+'")
    for name, factory in augment.AUGMENTATIONS.items():
        print(f"  {name:<18} {options(factory)}")
    parts("participation: NAME[:VALUE][,arg=value...], dropout and stragglers joined to it by '+'", "participation")
    parts("schedules: --schedule=NAME[:VALUE][,arg=value...], sync by default; the law of delays is one of these", "schedule")
    for name, factory in {**events.LAWS, **events.CHANGES}.items():
        print(f"    law={name:<16} {options(factory)}")
    print(f"  {schedules.GOSSIP:<18} {schedules.OWN[schedules.GOSSIP]}\n  {'':<18} {options(schedules.mixing)}")
    print(f"  {schedules.VERTICAL:<18} {schedules.OWN[schedules.VERTICAL]}")
    parts("graphs of gossip: --graph=NAME[:VALUE][,arg=value...]", "graph")
    parts("wires: --wire_up, --wire_down, NAME[:VALUE][,arg=value...] joined by '+'", "wire")
    parts("rules: --aggregator=NAME[:VALUE][,arg=value...], after nnm and norm-clip joined by '+'", "aggregator")
    parts("attacks: --attack=NAME[:SHARE][,arg=value...] joined by '+'", "attack")
    parts("privacy: --privacy=NAME[:VALUE][,arg=value...]", "privacy")
    parts("server optimizers: --server=NAME[:VALUE][,arg=value...]", "server")
    print("methods: --method=NAME --set key=value")
    shared = {o.name for o in spec.options(registry.training)}
    print(f"  {'(all)':<18} {options(registry.training)}")
    for name, factory in registry.catalog("method").items():
        print(f"  {name:<18} {factory.info.summary}")
        own = options(factory, shared)
        if own:
            print(f"  {'':<18} {own}")


def parts(title: str, kind: str) -> None:
    """The parts of a kind, with their options."""
    from fedjax_lab import registry

    print(title)
    for name, factory in registry.catalog(kind).items():
        print(f"  {name:<18} {factory.info.summary}")
        if options(factory):
            print(f"  {'':<18} {options(factory)}")


def options(factory, hidden: set[str] = frozenset()) -> str:
    """The options of a factory with their defaults, in a line."""
    return ", ".join(f"{o.name}={o.default}" if not o.required else f"{o.name} ({o.type})" for o in spec.options(factory) if o.name not in hidden)
