"""What the sets that the library names contain, asserted whenever one is read: the same name is the same data everywhere."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fedjax_lab.data.source import Source


class Facts(NamedTuple):
    """train, test: examples of the source with its default options;  classes: C, or 0;  shape: of one "x".

    sha256: source.digest of the arrays as they are read from the files, before any option; None where editions differ in it.
    """

    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    sha256: str | None


FACTS = {
    "digits": Facts(1442, 355, 10, (8, 8, 1), "443e1fca7477eee13cf18d39611769a2b10610031267210067d80c237d83f542"),
    "mnist": Facts(60000, 10000, 10, (28, 28, 1), "f007a830415f295ffd7cce198edc55a0df63c259c2260fd9037b1e24d8e1d7e0"),
    "cifar10": Facts(50000, 10000, 10, (32, 32, 3), None),  # the original pixels, and re-encodings of them
    "omniglot_small": Facts(3872, 968, 242, (28, 28, 1), "c7661018e7323b76028b2ddaa463ffe27693fc199dc4001e29b3e7ba67b58fcd"),
    "shakespeare_roles": Facts(9917, 2639, 66, (80,), "894fb0fa22b0461420ca8b4cc6c04d652c01e0106129e4b19066963a9ae9318f"),
    "sst2_sentences": Facts(6920, 1821, 2, (40,), "29d12ad96134453cb032c236f8b89330f8bfef6c2bbb213c7e207fd22ada1add"),
    "ag_news_small": Facts(6000, 1600, 4, (60,), "1b4626e8c4918bda204c749f0e8c7ac5a6d021a813eaa405954d0798ee0e35d5"),
    "adult": Facts(32561, 16281, 2, (108,), "1e56bdd18af5140ed20c6feb97518760c8d34c5541e864ba5a8de632fafb9b11"),
    "ml_latest_small": Facts(80896, 19940, 0, (2,), "a56aa7178bb18f800367c76d7542f6e9b7250fae53c6cffaf2ee67570de24982"),
    "stocks": Facts(20325, 6688, 0, (32, 1), "63f6abe506d04e0a30cd2c38a1c446f1435d6d31938bcc0c47d55a57f2cfc0a1"),
    "cora": Facts(2708, 2708, 7, (1433,), "ad0c7c5252794acf9c35f8b185c3ba750de8b2874fe2f381751eb922a5f552e5"),
    "citeseer": Facts(3327, 3327, 6, (3703,), "5eca2e6a65bcc2f222561526aae8837abe9f0e21f9fa00e285a08495e6414881"),
}
OTHERWISE = "give other data another name, or read it as npz:path=FILE"


def same(name: str, sha256: str) -> bool:
    """Whether these are the arrays of a known set; any will do for a name that is not known."""
    return name not in FACTS or FACTS[name].sha256 in (None, sha256)


def assert_arrays(name: str, sha256: str) -> None:
    """Of the arrays as they are read.

    Raises:
      ValueError: they are not those that the name stands for.
    """
    if not same(name, sha256):
        raise ValueError(f"source '{name}' is not the set of that name: its arrays have sha256 {sha256}, not {FACTS[name].sha256}; {OTHERWISE}")


def asserted(made: Source) -> Source:
    """The source, made with its default options.

    Raises:
      ValueError: it has not the examples, classes or shape that its name stands for.
    """
    if made.name in FACTS:
        m = made.manifest
        found = {"train": m["train_examples"], "test": m["test_examples"], "classes": m["classes"], "shape": tuple(m["fields"]["x"][1:])}
        other = [f"{k} {v} (not {getattr(FACTS[made.name], k)})" for k, v in found.items() if v != getattr(FACTS[made.name], k)]
        if other:
            raise ValueError(f"source '{made.name}' is not the set of that name: it has {', '.join(other)}; {OTHERWISE}")
    return made
