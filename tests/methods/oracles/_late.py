"""What the asynchronous cards share: the models a client may have been sent, and what its upload is worth later."""
from __future__ import annotations


def sent(models, turn):
    """The model that this client started from; `models` are those after 0, 1, .. updates."""
    return models[len(models) - 1 - turn.staleness]


def worth(form: str, s: int, a: float, b: float) -> float:
    """st(s) of the fedasync card."""
    if form == "constant":
        return 1.0
    if form == "polynomial":
        return (s + 1.0) ** -a
    return 1.0 if s <= b else 1.0 / (a * (s - b) + 1.0)
