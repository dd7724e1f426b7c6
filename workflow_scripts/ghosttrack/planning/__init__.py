"""Before and during a run: settings, plan, forecast, state of the run, Slurm's queue."""
