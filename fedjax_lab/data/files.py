"""Sources that lie in a data folder as .npz files: tables, ratings, price series and graphs."""
from __future__ import annotations

import os
from typing import Literal

import numpy as np

from fedjax_lab.data import known, source
from fedjax_lab.data.source import Arrays, Source
from fedjax_lab.spec import Count

Folder = str | os.PathLike | None
NUMBERS = ("age", "fnlwgt", "education_num", "capital_gain", "capital_loss", "hours_per_week")
CATEGORIES = ("occupation", "native_country", "workclass", "education", "marital_status", "relationship", "race", "sex")


def read(name: str, path: str, data_dir: Folder) -> Arrays:
    """The arrays of an .npz file of the data folder.

    Raises:
      ValueError: it is missing, or not the known set of that name.
    """
    file = source.find(name, (path,), data_dir, f"give --data_dir=DIR, or set FEDJAX_LAB_DATA, to a folder with {path}")
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as z:
        arrays = {field: z[field] for field in z.files}
    known.assert_arrays(name, source.digest(arrays))
    return arrays


def adult(*, sensitive: bool = True, data_dir: Folder = None) -> Source:
    """Census incomes above 50,000 (UCI Adult): "x" float32 [M, F], numbers standardized by the training set and categories
    one-hot.

    The sensitive attributes are fields of their own, "sex" and "race" int32 [M]. Natural clients: "occupation" or any category.

    Args:
      sensitive: whether x contains sex and race.
    """
    z = read("adult", "tabular/adult.npz", data_dir)
    train = z["split"] == 0
    numbers = np.stack([z[name] for name in NUMBERS], 1).astype(np.float64)
    numbers = (numbers - numbers[train].mean(0)) / numbers[train].std(0)
    used = [name for name in CATEGORIES if sensitive or name not in ("race", "sex")]
    x = np.concatenate([numbers, *(z[name][:, None] == np.arange(len(z[f"{name}_names"])) for name in used)],
                       1).astype(np.float32)
    fields = {"x": x, "y": z["label"], "sex": z["sex"], "race": z["race"]}
    sides = [{f: a[side] if f == "x" else a[side].astype(np.int32) for f, a in fields.items()} for side in (train, ~train)]
    keys = [{name: z[name][side] for name in CATEGORIES} for side in (train, ~train)]
    return source.make("adult", *sides, 2, *keys,
                       names={name: z[f"{name}_names"].tolist() for name in ("sex", "race")})


def ml_latest_small(*, data_dir: Folder = None) -> Source:
    """Film ratings (MovieLens latest-small): "x" int32 [M, 2] (user, item), "y" float32 [M] in 0.5..5.

    Natural clients: "user". Of each user the last fifth of the ratings, in the order of time, is test.
    """
    z = read("ml_latest_small", "ratings/ml_latest_small.npz", data_dir)
    order = np.lexsort((z["item"], z["timestamp"], z["user"]))
    pairs, rating = np.stack([z["user"], z["item"]], 1)[order].astype(np.int32), z["rating"][order].astype(np.float32)
    user, item = pairs.T
    counts = np.bincount(user)
    place = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    test = place >= np.repeat(counts - counts // 5, counts)
    sides = [{"x": pairs[s], "y": rating[s]} for s in (~test, test)]
    return source.make("ml_latest_small", *sides, 0, {"user": user[~test]}, {"user": user[test]},
                       users=int(user.max()) + 1, items=int(item.max()) + 1)


def stocks(*, window: Count = 32, stride: Count = 5, target: Literal["return", "direction"] = "return",
           data_dir: Folder = None) -> Source:
    """Daily share prices: "x" float32 [M, window, 1] log returns, "y" the next day's.

    Returns are divided by their standard deviation over the training days of all shares. Natural clients: "ticker". The first
    four fifths of the days are for training; a test window may look back into them, but its target lies after.

    Args:
      window: days in x.
      stride: days between windows.
      target: the return as float32, or its direction as a class (1 where it is positive).
    """
    z = read("stocks", "series/stocks.npz", data_dir)
    returns = np.diff(np.log(z["adj_close"]), axis=0)
    split = int(0.8 * len(returns))
    returns = returns / np.nanstd(returns[:split])
    view = np.lib.stride_tricks.sliding_window_view(returns, window + 1, axis=0)[::stride]
    end = np.arange(len(view)) * stride + window
    whole = np.isfinite(view).all(2)
    sides, keys = [], []
    for days in (end < split, end >= split):
        day, ticker = np.nonzero(whole & days[:, None])
        rows = view[day, ticker].astype(np.float32)
        y = rows[:, -1] if target == "return" else (rows[:, -1] > 0).astype(np.int32)
        sides.append({"x": rows[:, :-1, None].copy(), "y": y.copy()})
        keys.append({"ticker": ticker})
    return source.make("stocks", *sides, 2 if target == "direction" else 0, *keys, tickers=z["ticker"].tolist())


def graph(name: Literal["cora", "citeseer"], data_dir: Folder = None) -> Source:
    """A citation graph with the public Planetoid split: nodes "x" float32 [M, F] (rows sum to one), "y" int32 [M] (-1: no label),
    "train_mask", "val_mask", "test_mask" bool [M], and `edges` in both directions. Train and test hold the same nodes.
    """
    z = read(name, f"graphs/{name}.npz", data_dir)
    x = z["x"].astype(np.float32)
    nodes = {"x": x / np.maximum(x.sum(1, keepdims=True), 1), "y": z["y"].astype(np.int32)}
    nodes.update({side: z[side].astype(bool) for side in ("train_mask", "val_mask", "test_mask")})
    edges = z["edge_index"].T.astype(np.int32)
    made = source.make(name, nodes, nodes, int(z["y"].max()) + 1, edges=len(edges), sha256_edges=source.digest({"edges": edges}))
    return made._replace(edges=edges)


def cora(*, data_dir: Folder = None) -> Source:
    """Cora: 2708 papers, 1433 words, 7 topics, 5278 citations (Sen et al. 2008; split of Yang et al. 2016)."""
    return graph("cora", data_dir)


def citeseer(*, data_dir: Folder = None) -> Source:
    """Citeseer: 3327 papers, 3703 words, 6 topics, 4552 citations (Sen et al. 2008; split of Yang et al. 2016)."""
    return graph("citeseer", data_dir)
