"""Models as flax.linen modules, each offered as a Task.

    task = models.build("cnn", example, classes=10)                             # by name, options are the module's fields
    task = models.classification("mine", MyModule(), example)                   # one's own
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from fedjax_lab.models.backbone import CLIP, Backbone
from fedjax_lab.models.cnn import CNN, GroupNormCNN, LeNet5
from fedjax_lab.models.conv import Conv, max_pool
from fedjax_lab.models.factorization import MatrixFactorization
from fedjax_lab.models.graph import GCN, GraphSAGE
from fedjax_lab.models.linear import LinearRegression, LogisticRegression, SupportVectors
from fedjax_lab.models.lstm import CharLSTM
from fedjax_lab.models.mlp import MLP
from fedjax_lab.models.resnet import ResNet, ResNet8, ResNet18
from fedjax_lab.models.task import classification, make_task, margins, masked_mean, regression
from fedjax_lab.models.transformer import Transformer
from fedjax_lab.models.vit import ViT
from fedjax_lab.types import Batch, Task


def _plain(module: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda shape, classes, **options: module(classes=classes, **options)


def _mlp(shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    return MLP(**{"widths": (128,), **options}, classes=classes)


def _lenet5(shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    return LeNet5(classes, **{"padding": "VALID" if min(shape[:2]) >= 32 else "SAME", **options})


def _transformer(shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    return Transformer(classes, **{"length": shape[0], "causal": "vocabulary" not in options, **options})


def _backbone(shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    return Backbone(classes, **{"length": shape[0], **options})


def _factorization(shape: tuple[int, ...], classes: int = 1, **options: Any) -> nn.Module:
    return MatrixFactorization(**options)


# (shape, classes, **options) -> module: shape is that of one "x", without the batch, options are the module's fields. classes is the
# number of logits, or of values for linreg; mf takes users and items; transformer with a vocabulary of its own classifies texts.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "logreg": _plain(LogisticRegression), "svm": _plain(SupportVectors), "linreg": _plain(LinearRegression), "mlp": _mlp, "2nn": _plain(MLP), "cnn": _plain(CNN),
    "lenet5": _lenet5, "gncnn": _plain(GroupNormCNN), "resnet8": _plain(ResNet8), "resnet18": _plain(ResNet18),
    "charlstm": _plain(CharLSTM), "transformer": _transformer, "vit": _plain(ViT), "backbone": _backbone, "gcn": _plain(GCN), "sage": _plain(GraphSAGE),
    "mf": _factorization,
}


def build(name: str, example: Batch, classes: int, *, title: str | None = None, normalize: tuple[Any, Any] | None = None,
          **options: Any) -> Task:
    """The Task of a registered model: classification where "y" is whole numbers, regression where it is real.

    Args:
      name: a key of MODELS.
      example: a batch of any size, for the shapes.
      classes: number of logits or values.
      title: the task's name, by default that of the model.
      normalize: as in `make_task`.
      options: fields of the module.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is not one of {', '.join(MODELS)}")
    module = MODELS[name](tuple(example["x"].shape[1:]), classes, **options)
    kind = regression if not jnp.issubdtype(example["y"].dtype, jnp.integer) else margins if name == "svm" else classification
    return kind(title or name, module, example, normalize=normalize)


__all__ = ["CLIP", "CNN", "GCN", "MLP", "MODELS", "Backbone", "CharLSTM", "Conv", "GraphSAGE", "GroupNormCNN", "LeNet5", "LinearRegression",
           "LogisticRegression", "MatrixFactorization", "ResNet", "ResNet8", "ResNet18", "SupportVectors", "Transformer", "ViT", "build",
           "classification", "make_task", "margins", "masked_mean", "max_pool", "regression"]
