"""Where the runs of a sweep are trained: several processes here, a Ray cluster, or SLURM jobs, all
on one store. A worker imports this before it can be asked to stop, so there is nothing in it.
"""
