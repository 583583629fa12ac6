"""Whether a new boot image comes up: secex-firstboot-restart.service and secex-firstboot-image.service.

A new image is tried at the next restart: the guest asks its machine for it, and nothing else about what
starts is changed. Only a system that has come up makes its image the one that starts from then on. So however
a try ends, power off and on starts the last good image, which finds that another one was tried.

What was asked for once stays, so it is taken back once the system is up; until then the image before it is
asked for.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import PurePath

from secex_firstboot.basic.context import Context
from secex_firstboot.basic.errors import FirstbootError, Refusal
from secex_firstboot.basic.process import run
from secex_firstboot.contract import paths, settings
from secex_firstboot.contract.boot_image import Images, State
from secex_firstboot.roots import system_image
from secex_firstboot.roots.kinds import Root
from secex_firstboot.running import restart, system, update
from secex_firstboot.sdboot import boot_record

_NO_IMAGES = "it has no boot images"
_MOTD = PurePath("/run/motd.d/50-secex-firstboot")  # pam_motd(8)


def at_boot(context: Context, root: Root) -> None:
    """Early in a start, if its image has not come up yet: until it has, a restart goes back to the image that
    was before it, also one that a panic brings.

    Raises Refusal if first boot did not set up the system on ``root``, FirstbootError if the machine does not
    let the guest choose.
    """
    system.check_provisioned(root, _NO_IMAGES)
    with update.alone(root):
        images = system_image.images(root)
        if not images or not _is_tried(context, images):
            return
        if images.newest.state is State.NEW and not update.was_cut_short(root, images):
            update.record(root, update.with_newest(images, State.TRIED))
        if images.fallback:
            restart.ask_for(root, boot_record.FALLBACK_ENTRY)


def at_start(context: Context, root: Root) -> None:
    """Once the system is up: its image is good; or, if it is not the newest, the newest is not.

    Raises Refusal if first boot did not set up the system on ``root``.
    """
    system.check_provisioned(root, _NO_IMAGES)
    with update.alone(root):
        if not (images := system_image.images(root)):
            context.say("there is no record of the boot images: secex update makes one")
            return
        if cut_short := update.was_cut_short(root, images):
            after = images
        else:
            after = _judged(context, root, images)
            update.arrange(root, images, after)
        if system.generation(context) == after.newest.generation:
            restart.take_back(root)
    if cut_short:
        context.say("an update was cut short: the boot image is made anew")
        _, after = update.in_system(context, root)
    motd = root.place(_MOTD)
    motd.unlink(missing_ok=True)
    if failure := failure_of(after):
        context.say(failure)
        motd.parent.mkdir(parents=True, exist_ok=True)
        motd.write_text(f"secex-firstboot: {failure}\n")


def _judged(context: Context, root: Root, images: Images) -> Images:
    """What is known of the images now that this system is up."""
    running = system.generation(context)
    after = images
    if running == images.newest.generation:
        after = update.with_newest(images, State.UP)
    else:
        if images.newest.state is State.TRIED:
            after = update.with_newest(images, State.FAILED)
        if images.fallback and running == images.fallback.generation:
            up = images.fallback.model_copy(update={"state": State.UP})
            after = after.model_copy(update={"fallback": up})
    try:
        return update.set_to(root, after, settings.value(root.place(paths.SETTINGS), settings.FALLBACK))
    except Refusal as refusal:
        context.say(f"the setting stays as it was: {refusal}")
        return after


def failure_of(images: Images) -> str:
    """A line of a newest image that was tried and did not come up; empty, if that is not so."""
    newest = images.newest
    if newest.state is not State.FAILED:
        return ""
    what = f"boot image {newest.generation}" + (f" (kernel {newest.kernel})" if newest.kernel else "")
    return f"{what} was tried and did not come up; the one before it runs: secex status says what to do"


def at_stop(context: Context, root: Root) -> None:
    """When the system ends: an update, if one is due; and if it restarts, ask for what is to be tried."""
    system.check_provisioned(root, _NO_IMAGES)
    try:
        update.in_system(context, root)
    except (FirstbootError, OSError) as error:
        context.say(f"the boot image stays as it is: {error}")
    with update.alone(root):
        images = system_image.images(root)
        if images and images.fallback and not update.was_cut_short(root, images):
            _try(context, root, images)


def _try(context: Context, root: Root, images: Images) -> None:
    """Ask for the newest, if it is new; whatever starts it next, that is a try."""
    newest = images.newest
    if _is_tried(context, images):
        context.say("this boot image has not come up: a restart goes back to the one before it")
        return
    restarts = _restarts()
    if newest.state is not State.NEW or not (restarts or images.starts_newest):
        return
    if restarts:
        context.say(f"the restart tries boot image {newest.generation}")
        with suppress(FirstbootError) if images.starts_newest else nullcontext():
            restart.ask_for(root, boot_record.IMAGE_ENTRY)
    update.record(root, update.with_newest(images, State.TRIED))


def _is_tried(context: Context, images: Images) -> bool:
    """Whether the newest image runs and has not come up."""
    newest = images.newest
    return newest.generation == system.generation(context) and newest.state is not State.UP


def _restarts() -> bool:
    """Whether the system that is ending comes again, by systemd's queue of jobs."""
    jobs = run(["systemctl", "list-jobs", "--no-legend", "--plain"]).splitlines()
    return any(words[1:3] == ["reboot.target", "start"] for words in map(str.split, jobs))
