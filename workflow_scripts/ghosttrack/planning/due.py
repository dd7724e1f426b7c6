"""Which jobs must run, decided by content instead of file dates.

Snakemake plans the graph, its order and its missing files; this module tells Snakemake which of the
existing outputs are current, by comparing the records of jobs with the planned jobs. A job is

- *current* if its outputs exist and match their records, and the records match the planned job;
- *missing* if outputs do not exist (deleted under a disk budget, or lost) and the records match:
the
  job runs only if another job needs these outputs;
- *damaged* if the content of an output is not what its job recorded: the job runs again;
- *due* if a record does not match the planned job, or an output has no record: the job runs again,
and
  so do all jobs that depend on it.

Jobs that depend on a missing or damaged output stay current, because they were made from the
recorded content. If the rerun writes other content, `ContentDAG.disagreements` reports it after the
run.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import records
from ghosttrack.settings import code_digest

State = Literal["current", "missing", "damaged", "due"]
# Maximum number of reasons that are printed.
SHOWN_REASONS = 12
_ABSENT = object()


class Request(NamedTuple):
    """A planned job."""

    rule: str
    description: records.Description
    outputs: tuple[str, ...]
    # Input path -> index of the request that makes this file; user files have none.
    producers: Mapping[str, int]
    call: str = ""  # why the job must run whatever the records say, or ""


class JobVerdict(NamedTuple):
    """State of a job; `reason` is "" unless the job itself is due or damaged."""

    state: State
    reason: str = ""


def own_environments(workflow: Any) -> bool:
    """Whether jobs run in conda environments or containers, not in this one."""
    return bool(workflow.deployment_settings.deployment_method)


def judge(requests: Sequence[Request]) -> list[JobVerdict]:
    """State of every job, in order.

    Args:
        requests: in topological order; a request comes after the requests that make its inputs.
    """
    verdicts: list[JobVerdict] = []
    disk = DigestCache()
    for request in requests:
        if any(verdicts[index].state == "due" for index in request.producers.values()):
            verdicts.append(JobVerdict("due"))
        else:
            verdicts.append(_judge(request, disk))
    return verdicts


class DigestCache:
    """Current content digests and records of files, each read once."""

    def __init__(self) -> None:
        self._digests: dict[str, str | None] = {}
        self._records: dict[str, records.Record | None] = {}

    def digest(self, path: str) -> str | None:
        """Content digest of the file or directory `path`; None if it does not exist."""
        if path not in self._digests:
            self._digests[path] = records.digest_of(path)
        return self._digests[path]

    def record(self, path: str) -> records.Record | None:
        """Record of the output `path`, or None."""
        if path not in self._records:
            self._records[path] = records.read(path)
        return self._records[path]


def _judge(request: Request, disk: DigestCache) -> JobVerdict:
    """State of a job that depends on no due job."""
    if request.call:
        return JobVerdict("due", request.call)
    missing, damaged = False, list[str]()
    for output in request.outputs:
        digest, record = disk.digest(output), disk.record(output)
        if record is None and digest is not None:
            return JobVerdict("due", f"{output} has no record of its inputs and settings")
        if record is not None and (reason := _disagreement(request, record, disk)):
            return JobVerdict("due", reason)
        missing = missing or digest is None
        if record is not None and digest not in (None, record.sha256):
            damaged.append(output)
    if damaged:
        return JobVerdict(
            "damaged", f"{' and '.join(damaged)}: damaged or edited since the job wrote it"
        )
    return JobVerdict("missing" if missing else "current")


def _disagreement(request: Request, record: records.Record, disk: DigestCache) -> str:
    """The first difference between an output's record and the planned job; "" if they match."""
    wanted = request.description
    before, now = map(records.without_folders, (record.params, wanted.params))
    if before != now:
        return _changed_params(before, now)
    if record.inputs.keys() != wanted.inputs.keys():
        other = sorted(record.inputs.keys() ^ wanted.inputs.keys())
        return f"different input files ({', '.join(other[:3])}{', ...' if len(other) > 3 else ''})"
    for label, path in wanted.inputs.items():
        # The record also gives the digest of a file that is deleted, lost or damaged.
        made = disk.record(path) if path in request.producers else None
        current = made.sha256 if made is not None else disk.digest(path)
        if current is None:
            return f"{label} and its record are missing"
        if current != record.inputs[label]:
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


def described(requests: Sequence[Request], verdicts: Sequence[JobVerdict]) -> str:
    """Text with the rules that must run again and the reasons; "" if there are none."""
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
        ["Finished jobs that must run again:", *lines, f"  jobs that depend on these: {follow}", ""]
    )


# ---- Snakemake's graph
def install() -> None:
    """Make the graphs that Snakemake builds from now on decide by content instead of dates.

    Snakemake has no public interface for this, so its graph class is extended.

    Raises:
        UserError: this version of Snakemake lacks a method that the extension needs.
    """
    import snakemake.workflow
    from snakemake.dag import DAG

    needed = (
        "update_needrun",
        "check_output_mtime",
        "finished",
        "bfs",
        "toposorted",
        "dependencies",
    )
    if not hasattr(snakemake.workflow, "DAG") or not all(hasattr(DAG, name) for name in needed):
        raise UserError(
            "GhostTrack does not support this version of Snakemake: install the version in "
            "envs/requirements.txt"
        )
    if not hasattr(snakemake.workflow.DAG, "disagreements"):
        snakemake.workflow.DAG = _content_dag(DAG)


def _recorded(job: Any) -> bool:
    """Whether a job of Snakemake's graph writes records: a job of this workflow with outputs."""
    return bool(job.output) and "code" in job.params.keys()  # noqa: SIM118


def _content_dag(base: type[Any]) -> type[Any]:
    from snakemake.io import flag
    from snakemake.settings.types import DeploymentMethod, RerunTrigger

    class ContentDAG(base):  # type: ignore[misc]
        """Snakemake's graph, in which records instead of dates decide which jobs run."""

        _current: frozenset[Any] = frozenset()
        _planning = False

        async def update_needrun(self, create_inventory: bool = False) -> None:
            """Judge all jobs once the graph is complete; later decisions skip current jobs."""
            if create_inventory and self.workflow.is_main_process:
                self._decide()
            self._planning = True
            try:
                await super().update_needrun(create_inventory)
            finally:
                self._planning = False

        def finished(self, job: Any) -> bool:
            """Whether a job is finished; while jobs are selected, current jobs are."""
            return (self._planning and job in self._current) or bool(super().finished(job))

        def bfs(self, direction: Any, *jobs: Any, **options: Any) -> Iterator[Any]:
            """As Snakemake's, but empty while jobs are selected.

            Snakemake skips the jobs that it finds here, because it expects to reach them later from
            the job above. It would never reach them from a current job.
            """
            return iter(()) if self._planning else super().bfs(direction, *jobs, **options)

        async def check_output_mtime(self, job: Any, expanded_output: Any) -> None:
            """Do not fail a job whose inputs have later dates, for example by another clock."""
            if not _recorded(job):
                await super().check_output_mtime(job, expanded_output)

        def disagreements(self) -> list[str]:
            """After a run: why results do not match their inputs, settings or code.

            Jobs read the code when they start, so an edit during the run mixes two versions.
            Waits up to Snakemake's --latency-wait for files of other nodes on a shared file system.
            """
            requests = [request._replace(call="") for request in self._requests()[1]]
            end = time.monotonic() + self.workflow.execution_settings.latency_wait
            while (
                reasons := [verdict.reason for verdict in judge(requests) if verdict.reason]
            ) and time.monotonic() < end:
                time.sleep(1.0)
            edited = code_digest.edited_digests()
            return reasons + [
                f"the code of {request.rule} was edited during the run"
                for request in requests
                if request.description.params.get("code") in edited
            ]

        def _decide(self) -> None:
            jobs, requests = self._requests()
            judged = list(zip(jobs, judge(requests), strict=True))
            for job, verdict in judged:
                if verdict.state in ("due", "damaged"):
                    self.forcefiles.update(job.output)
                elif verdict.state == "missing":  # dates of its inputs must not make it run
                    for path in job.input:
                        path._file = flag(path._file, "ancient")
            self._current = frozenset(job for job, verdict in judged if verdict.state == "current")
            # Snakemake's metadata of earlier attempts must not make jobs run either: it keeps the
            # params of a failed job. A workflow that uses this one as a module has other rules,
            # which need it.
            if len(jobs) == sum(bool(job.output) for job in self.jobs):
                self.workflow.dag_settings.rerun_triggers = frozenset({RerunTrigger.MTIME})
            if self.workflow.executor_plugin:  # not for lists, graphs and lint
                sys.stderr.write(described(requests, [verdict for _, verdict in judged]))

        def _requests(self) -> tuple[list[Any], list[Request]]:
            """Jobs that write records, in topological order, and their requests."""
            jobs = [job for level in self.toposorted() for job in level if _recorded(job)]
            indices = {job: index for index, job in enumerate(jobs)}
            return jobs, [self._request(job, indices) for job in jobs]

        def _request(self, job: Any, indices: Mapping[Any, int]) -> Request:
            description = records.describe_job(job)
            read = set(description.inputs.values())
            producers = {
                str(path): indices[other]
                for other, paths in self.dependencies[job].items()
                if other in indices
                for path in paths
                if str(path) in read
            }
            return Request(
                job.rule.name, description, tuple(map(str, job.output)), producers, self._call(job)
            )

        def _call(self, job: Any) -> str:
            # Not `forcefiles`: Snakemake adds jobs that were killed, whose records are decisive.
            if job.rule in self.forcerules or not self.workflow.dag_settings.forcerun.isdisjoint(
                job.output
            ):
                return "requested on the command line"
            if DeploymentMethod.CONDA in self.workflow.deployment_settings.deployment_method:
                persistence = self.workflow.persistence
                if persistence.has_metadata(job) and any(persistence.software_stack_changed(job)):
                    return "its conda environment changed"
            return ""

    return ContentDAG
