"""Which jobs are due, decided by content and not by dates: the records of jobs against what is asked for.

Snakemake plans the graph, its order and its missing files; this module tells it which of the existing outputs
are current. A job is

- *current* when its outputs stand and agree with their records and with what is asked for now;
- *missing* when outputs are gone (released under a disk budget, or lost) and the records agree: it runs only if
  a job that runs needs them;
- *damaged* when the bytes of an output are not those that its job recorded: it runs again;
- *due* when a record disagrees with what is asked for, or an output has no record; all jobs that follow from it
  are due too.

What follows from a missing or damaged output stays current, because it was made from the recorded bytes. Should
the job write other bytes this time, `ContentDAG.disagreements` tells after the run.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import records

State = Literal["current", "missing", "damaged", "due"]
# Reasons on the screen of a plan; the rest is summed up in one line.
SHOWN_REASONS = 12
_ABSENT = object()


class Request(NamedTuple):
    """A job that a plan contains."""

    rule: str
    description: records.Description
    outputs: tuple[str, ...]
    producers: Mapping[
        str, int
    ]  # input path -> index of the request that makes it; users' files have none
    call: str = ""  # why it runs whatever the records say; "" for none


class Verdict(NamedTuple):
    """State of a job. `reason` names what disagrees; "" for a job that only follows from others, or that is not due."""

    state: State
    reason: str = ""


def judge(requests: Sequence[Request]) -> list[Verdict]:
    """State of every job, in order.

    Args:
        requests: each after the requests that make its inputs.
    """
    found: list[Verdict] = []
    disk = Disk()
    for request in requests:
        if any(found[index].state == "due" for index in request.producers.values()):
            found.append(Verdict("due"))
        else:
            found.append(_judge(request, disk))
    return found


class Disk:
    """Content digests and records as they are now; each is read once."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}
        self._records: dict[str, records.Record | None] = {}

    def digest(self, path: str) -> str | None:
        """Content digest of what stands at `path`; None if nothing does."""
        if path not in self._digests:
            self._digests[path] = records.digest_of(path)
        return self._digests[path]

    def record(self, path: str) -> records.Record | None:
        """Record of the output `path`; None if there is none."""
        if path not in self._records:
            self._records[path] = records.read(path)
        return self._records[path]


def _judge(request: Request, disk: Disk) -> Verdict:
    """State of a job whose inputs are made by no job that is due."""
    if request.call:
        return Verdict("due", request.call)
    missing, damaged = False, list[str]()
    for output in request.outputs:
        standing, record = disk.digest(output), disk.record(output)
        if record is None and standing is not None:
            return Verdict("due", f"{output} has no record of what it was made from")
        if record is not None and (reason := _disagreement(request, record, disk)):
            return Verdict("due", reason)
        missing = missing or standing is None
        if record is not None and standing not in (None, record.sha256):
            damaged.append(output)
    if damaged:
        return Verdict(
            "damaged", f"{' and '.join(damaged)}: not what the job wrote (damaged or edited)"
        )
    return Verdict("missing" if missing else "current")


def _disagreement(request: Request, record: records.Record, disk: Disk) -> str:
    """What an output was made from that is not asked for now; "" if nothing."""
    wanted = request.description
    if record.params != wanted.params:
        return _changed_params(record.params, wanted.params)
    if record.inputs.keys() != wanted.inputs.keys():
        other = sorted(record.inputs.keys() ^ wanted.inputs.keys())
        return f"other input files ({', '.join(other[:3])}{', ...' if len(other) > 3 else ''})"
    for label, path in wanted.inputs.items():
        # Of a file that is released, lost or damaged, what its job recorded counts.
        made = disk.record(path) if path in request.producers else None
        now = made.sha256 if made is not None else disk.digest(path)
        if now is None:
            return f"{label} is missing, and so is the record of what it was"
        if now != record.inputs[label]:
            return f"the content of {label} changed"
    return ""


def _changed_params(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    differences = sorted(_differences(before, now, ""))
    if settings := [line for name, line in differences if name != "code"]:
        return f"settings: {', '.join(settings[:4])}{', ...' if len(settings) > 4 else ''}"
    return "code"


def _differences(before: Any, now: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in before.keys() | now.keys():
            inner = f"{name}.{key}" if name else str(key)
            yield from _differences(before.get(key, _ABSENT), now.get(key, _ABSENT), inner)
    elif before != now:
        yield name, f"{name} {_short(before)} -> {_short(now)}"


def _short(value: Any) -> str:
    text = "none" if value is _ABSENT else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def described(requests: Sequence[Request], verdicts: Sequence[Verdict]) -> str:
    """Why jobs are due, for the screen of a plan: rules by reason. "" when nothing made before is due."""
    reasons = Counter(
        (verdict.reason, request.rule)
        for request, verdict in zip(requests, verdicts, strict=True)
        if verdict.reason
    )
    if not reasons:
        return ""
    follow = sum(verdict.state == "due" and not verdict.reason for verdict in verdicts)
    lines = [
        f"  {rule}{f' ({count} jobs)' if count > 1 else ''}: {reason}"
        for (reason, rule), count in reasons.items()
    ]
    if len(lines) > SHOWN_REASONS:
        lines[SHOWN_REASONS:] = [f"  and {len(lines) - SHOWN_REASONS} more"]
    return "\n".join(
        ["Made before, and due again:", *lines, f"  jobs that follow from these: {follow}", ""]
    )


# ---- Snakemake's graph
def install() -> None:
    """Let the graphs that Snakemake builds from now on decide by content.

    Snakemake has no public way to replace dates as the reason for a job, so its graph class is extended. What
    the extension relies on is checked here.

    Raises:
        UserError: this version of Snakemake has not what the extension relies on.
    """
    import snakemake.workflow
    from snakemake.dag import DAG

    relied_on = (
        "update_needrun",
        "check_output_mtime",
        "finished",
        "bfs",
        "toposorted",
        "dependencies",
    )
    if not hasattr(snakemake.workflow, "DAG") or not all(hasattr(DAG, name) for name in relied_on):
        raise UserError(
            "this version of Snakemake plans in a way that GhostTrack does not know: install the version that "
            "envs/requirements.txt names"
        )
    if not hasattr(snakemake.workflow.DAG, "disagreements"):
        snakemake.workflow.DAG = _content_dag(DAG)


def _recorded(job: Any) -> bool:
    """Whether a job of Snakemake's graph is one of this workflow that leaves records."""
    return bool(job.output) and "code" in job.params.keys()  # noqa: SIM118


def _content_dag(base: type[Any]) -> type[Any]:
    from snakemake.io import flag
    from snakemake.settings.types import DeploymentMethod, RerunTrigger

    class ContentDAG(base):  # type: ignore[misc]
        """Snakemake's graph, in which records and not dates decide what is due."""

        _current: frozenset[Any] = frozenset()
        _planning = False

        async def update_needrun(self, create_inventory: bool = False) -> None:
            """Judge all jobs once, when the graph is complete; current ones are left out of every later decision."""
            if create_inventory and self.workflow.is_main_process:
                self._decide()
            self._planning = True
            try:
                await super().update_needrun(create_inventory)
            finally:
                self._planning = False

        def finished(self, job: Any) -> bool:
            """Whether a job has nothing more to do; in a decision about what to run, a current job has not."""
            return (self._planning and job in self._current) or bool(super().finished(job))

        def bfs(self, direction: Any, *jobs: Any, **options: Any) -> Iterator[Any]:
            """As Snakemake's, but in a decision about what to run no job hides those that follow from it.

            Snakemake does not look at them because it expects to reach them later. Behind a current job it would not.
            """
            return iter(()) if self._planning else super().bfs(direction, *jobs, **options)

        async def check_output_mtime(self, job: Any, expanded_output: Any) -> None:
            """Snakemake fails a job whose inputs are dated later, as by another clock; here dates mean nothing."""
            if not _recorded(job):
                await super().check_output_mtime(job, expanded_output)

        def disagreements(self) -> list[str]:
            """What disagrees now: after a run, results that no longer match what they were made from.

            What other nodes wrote may show late on a shared file system: it has as long as Snakemake gives outputs.
            """
            requests = [request._replace(call="") for request in self._requests()[1]]
            end = time.monotonic() + self.workflow.execution_settings.latency_wait
            while (
                found := [verdict.reason for verdict in judge(requests) if verdict.reason]
            ) and time.monotonic() < end:
                time.sleep(1.0)
            return found

        def _decide(self) -> None:
            jobs, requests = self._requests()
            judged = list(zip(jobs, judge(requests), strict=True))
            for job, verdict in judged:
                if verdict.state in ("due", "damaged"):
                    self.forcefiles.update(job.output)
                elif verdict.state == "missing":  # dates of its inputs must not call for it
                    for path in job.input:
                        path._file = flag(path._file, "ancient")
            self._current = frozenset(job for job, verdict in judged if verdict.state == "current")
            # Nor may what Snakemake remembers of earlier attempts: it keeps the settings of a failed job. A workflow
            # that uses this one as a module has rules of its own, which need it.
            if len(jobs) == sum(bool(job.output) for job in self.jobs):
                self.workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.MTIME})
            if self.workflow.executor_plugin:  # not for lists, graphs and lint
                sys.stderr.write(described(requests, [verdict for _, verdict in judged]))

        def _requests(self) -> tuple[list[Any], list[Request]]:
            """This workflow's jobs with outputs and a digest of their code, each after those that it depends on."""
            jobs = [job for level in self.toposorted() for job in level if _recorded(job)]
            places = {job: index for index, job in enumerate(jobs)}
            return jobs, [self._request(job, places) for job in jobs]

        def _request(self, job: Any, places: Mapping[Any, int]) -> Request:
            description = records.describe_job(job)
            read = set(description.inputs.values())
            producers = {
                str(path): places[other]
                for other, paths in self.dependencies[job].items()
                if other in places
                for path in paths
                if str(path) in read
            }
            return Request(
                job.rule.name, description, tuple(map(str, job.output)), producers, self._call(job)
            )

        def _call(self, job: Any) -> str:
            # What a kill cut off is in Snakemake's forcefiles too; its records tell how far it came.
            if job.rule in self.forcerules or not self.workflow.dag_settings.forcerun.isdisjoint(
                job.output
            ):
                return "asked for by name"
            if DeploymentMethod.CONDA in self.workflow.deployment_settings.deployment_method:
                persistence = self.workflow.persistence
                if persistence.has_metadata(job) and any(persistence.software_stack_changed(job)):
                    return "its conda environment changed"
            return ""

    return ContentDAG
