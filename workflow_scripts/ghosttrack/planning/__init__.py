"""What is known before and beside the jobs: settings, plan, forecast, state of a run, Slurm's queue."""
