"""Runs and sweeps on a Slurm cluster or on this machine, from frozen configs."""
