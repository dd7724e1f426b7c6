"""A correction of Snakemake's scheduler, whose cost otherwise grows with every finished job."""

import threading
from typing import Any

# The method of Snakemake's scheduler that starts its next round after a delay, as it is spelled.
METHOD = "_schedule_reevalutation"


def install() -> None:
    """Let the scheduler wait for at most one delayed round at a time.

    While jobs wait for resources, each round of Snakemake 9 starts a timer for another round, which
    starts a timer again. Each finished job adds a round of its own, so that the rounds per second
    grow with the number of finished jobs: a run of 93 jobs spent 4 CPU minutes on them. A version
    of Snakemake without this method is left as it is.
    """
    from snakemake.scheduling.job_scheduler import JobScheduler

    if hasattr(JobScheduler, METHOD):
        setattr(JobScheduler, METHOD, _one_at_a_time)


def _one_at_a_time(scheduler: Any, delay: float) -> None:
    """Start a round of the scheduler after `delay` seconds, unless one is started already."""
    if getattr(scheduler, "_round_is_coming", False):
        return
    scheduler._round_is_coming = True

    def begin() -> None:
        scheduler._round_is_coming = False
        scheduler._open_jobs.release()

    timer = threading.Timer(delay, begin)
    timer.daemon = True  # the end of a run does not wait for it
    timer.start()
