"""The step that takes over what Ignition wrote; overlayfs itself: tests/roots/test_overlay.py."""

from __future__ import annotations

import pytest
from support.machine import Machine, observe, put

from secex_firstboot.agent import luks_volumes, places
from secex_firstboot.agent.step import Context
from secex_firstboot.agent.steps.files import Files
from secex_firstboot.contract.dry_run import State
from secex_firstboot.roots import overlay


def test_files_wait_for_the_commit_point_and_for_ignition(machine: Machine) -> None:
    assert observe(machine, Files()).detail == "the commit point comes first"
    machine.commit()
    assert observe(machine, Files()).detail == "the encrypted volumes are mounted first"
    machine.mounts[machine.where("boot")] = machine.open_encrypted("boot")
    assert observe(machine, Files()).state is State.READY


@pytest.mark.parametrize("cut", ["volumes", "overlay", ""])
def test_files_are_done_only_when_volumes_and_overlay_are(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    """The config's volumes first: what they need is written through the overlay."""
    done: list[str] = []

    def part(name: str) -> None:
        if name == cut:
            raise OSError(name)
        done.append(name)

    monkeypatch.setattr(luks_volumes, "add_to_system", lambda root: part("volumes"))
    monkeypatch.setattr(overlay, "take_over", lambda root, system, scratch: part("overlay"))
    machine.commit()
    machine.mounts[machine.where("boot")] = machine.open_encrypted("boot")
    put(places.RUNTIME / "here")
    if cut:
        with pytest.raises(OSError, match=cut):
            Files().perform(Context(""))
        assert observe(machine, Files()).state is State.READY
    else:
        Files().perform(Context(""))
        assert done == ["volumes", "overlay"]
        assert observe(machine, Files()).done
