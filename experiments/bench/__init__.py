"""Timing on fixed workloads: `python -m experiments.bench`, see __main__.py."""
