"""DFedSAM-MGS: DFedSAM with four gossip steps a round."""
from __future__ import annotations

from oracles import dfedsam


def run(problem, turns, *, lr, matrices, rho=0.01, momentum=0.9):
    return dfedsam.rounds(problem, turns, lr, matrices, rho, momentum, 4)
