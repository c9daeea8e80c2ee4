"""What verbs that train check and say before a long run."""

from __future__ import annotations


def require_lab() -> None:
    """Refuse before any work where the packages of the ``lab`` extra are missing.

    Raises:
        IntruscopeError: one is.
    """
    from intruscope.adapters.live_models import require

    for package in ("transformers", "peft", "accelerate"):
        require(package)


def warn_of_bfloat16(bf16: bool) -> None:
    """Say before a long run that ``--bf16`` makes it slower on this machine."""
    from intruscope.cli.screen import note
    from intruscope.train.precision import is_bfloat16_slow

    if bf16 and is_bfloat16_slow():
        note("this processor has no fast bfloat16; without --bf16 the run may be ten times faster")


def note_idle_gpus(command: str) -> None:
    """Say before a long run in one process that it leaves GPUs idle.

    Args:
        command: How it would be started on all of them.
    """
    import torch

    from intruscope.cli.screen import note
    from intruscope.train.processes import is_alone

    count = torch.cuda.device_count()
    if count > 1 and is_alone():
        note(f"this run uses one of {count} GPUs; to use all of them, start it with: {command}")
