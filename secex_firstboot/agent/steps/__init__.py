"""The story of a first boot: every step, in order."""

from __future__ import annotations

from secex_firstboot.agent.step import Step
from secex_firstboot.agent.steps.config import DecryptConfig
from secex_firstboot.agent.steps.encrypt import EncryptBoot, EncryptRoot
from secex_firstboot.agent.steps.files import Files
from secex_firstboot.agent.steps.hostkeys import HostKeys
from secex_firstboot.agent.steps.mount import Mount
from secex_firstboot.agent.steps.partition import GrowPartition
from secex_firstboot.agent.steps.personalise import Personalise
from secex_firstboot.agent.steps.platform import Platform
from secex_firstboot.agent.steps.seal import Seal
from secex_firstboot.agent.steps.verity import Verity
from secex_firstboot.agent.steps.volumes import Volumes

STEPS: tuple[Step, ...] = (
    Platform(),
    DecryptConfig(),
    HostKeys(),
    Verity(),
    Personalise(),
    GrowPartition(),
    EncryptBoot(),
    EncryptRoot(),
    Mount(),
    Volumes(),
    Files(),
    Seal(),
)
