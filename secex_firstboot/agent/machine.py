"""Runs the steps: each asked whether it is done, performed if not, and asked again."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

from secex_firstboot.agent import places, volumes
from secex_firstboot.agent.report import MemorySampler, Report
from secex_firstboot.agent.step import Context, Stage, Step
from secex_firstboot.agent.steps import STEPS
from secex_firstboot.basic import journal
from secex_firstboot.basic.errors import FirstbootError
from secex_firstboot.contract import paths
from secex_firstboot.contract.dry_run import Observation, State
from secex_firstboot.contract.report import StepReport
from secex_firstboot.storage import disk

_CURES = {
    errno.ENOSPC: "give the guest more memory, or the image a larger partition se",
    errno.ENOMEM: "give the guest more memory",
    errno.EIO: "look at the disk's health",
}


def run(stage: Stage, context: Context) -> None:
    """Take the steps of one stage to their end. Raises FirstbootError at the first that cannot get there."""
    places.RUNTIME.mkdir(mode=0o700, parents=True, exist_ok=True)
    report = Report.load()
    memory = MemorySampler()
    context = replace(context, warn=_warner(context, report))
    try:
        with memory:
            for number, step in enumerate(STEPS, start=1):
                if step.stage is stage:
                    report.steps.append(take(step, f"[{number}/{len(STEPS)}] {step.name}", context))
    finally:
        report.peak_memory_mib = max(report.peak_memory_mib, memory.peak_mib)
        report.total_memory_mib = memory.total_mib
        with suppress(OSError):  # of a full /run says more what it hindered
            report.save(places.REPORT)
    if stage is Stage.SEAL:
        with volumes.root_mounted(context) as root:
            report.save(root.place(paths.SYSTEM_REPORT))
        context.say(f"first boot is complete: {report.summary}")


def _warner(context: Context, report: Report) -> Callable[[str], None]:
    def warn(line: str) -> None:
        context.say(f"WARNING: {line}")
        report.warnings.append(line)

    return warn


def take(step: Step, title: str, context: Context) -> StepReport:
    """Take one step to its end. ``run`` looks it up for each: who puts another function in its place, as
    vm-tests/dracut/failing.py does, is there before and after every step.
    """
    start = time.monotonic()
    status = disk.wait_for_device(lambda: step.observe(context))
    if status.done:
        context.say(f"{title}: already done: {status.detail}")
        return StepReport(name=step.name, seconds=0, outcome="already done")
    if status.state is State.WAITING:
        raise FirstbootError(
            "SX-STEP-01", f"{step.name} cannot start: {status.detail}", "see the messages above"
        )
    context.say(f"{title}: {status.detail}")
    _perform(step, context)
    status = step.observe(context)
    # What a step that removes its own traces leaves to see is a provisioned system: done as well.
    if not status.done:
        raise FirstbootError(
            "SX-STEP-02", f"{step.name} was performed and is still not done: {status.detail}"
        )
    seconds = round(time.monotonic() - start, 1)
    context.say(f"{title}: done in {seconds} s: {status.detail}")
    journal.step_done(step.name, seconds)
    return StepReport(name=step.name, seconds=seconds, outcome="done")


def _perform(step: Step, context: Context) -> None:
    """Perform it. What the system refuses gets the step's name, and a cure where there is one."""
    try:
        step.perform(context)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        raise FirstbootError(
            "SX-STEP-03", f"{step.name} failed: {reason}", _CURES.get(error.errno or 0, "")
        ) from error
    except MemoryError:
        raise FirstbootError(
            "SX-STEP-04", f"{step.name} failed: out of memory", _CURES[errno.ENOMEM]
        ) from None


def dry_run(context: Context, steps: Iterable[Step] = STEPS) -> list[Observation]:
    """Ask each step whether it is done; change nothing."""
    seen = []
    for step in steps:
        try:
            status = step.observe(context)
            seen.append(Observation(step.described, status.state, status.detail))
        except (FirstbootError, OSError) as error:
            seen.append(Observation(step.described, State.REFUSED, str(error)))
    return seen
