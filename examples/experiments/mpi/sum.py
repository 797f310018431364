"""Adds up the numbers of all ranks, each of which says where it is."""

import os

from mpi4py import MPI

world = MPI.COMM_WORLD
total = world.allreduce(world.rank + 1)
print(f"rank {world.rank} of {world.size} in {os.getcwd()}: the sum is {total}")
