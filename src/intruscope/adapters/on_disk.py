"""Models in memory as folders, for what reads files: a scan, a repair."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def on_disk(base: str | Path | nn.Module, tuned: nn.Module) -> Iterator[tuple[str, str]]:
    """Save two models for as long as the block lasts.

    Args:
        base: The model before: a name or path, which is used as it is, or a transformers model in memory. It
            may be the one inside the PeftModel: its adapters are taken off in a copy.
        tuned: A PeftModel, of which the active adapter is saved, or a transformers model, saved whole.

    Yields:
        Names for both, as :func:`intruscope.scan` and :func:`intruscope.repair.repair` take them. A plan must
        be applied before the block ends.

    Raises:
        UsageError: what is in memory is no longer the base.
        OSError: no room in the folder for temporary files (``TMPDIR`` chooses another).
    """
    from intruscope.adapters.live_loading import pristine_base
    from intruscope.adapters.live_models import quiet

    with tempfile.TemporaryDirectory(prefix="intruscope-") as name:
        before, after = str(base), Path(name) / "tuned"
        with quiet():
            if not isinstance(base, (str, Path)):
                model: Any = pristine_base(base, tuned)
                # An adapter names its base: a folder of that name says that it is the right one.
                told = Path(str(getattr(base.config, "name_or_path", "") or "base")).name
                before = str(Path(name) / "base" / told)
                model.save_pretrained(before)
            saved: Any = tuned
            if hasattr(saved, "peft_config"):
                active = saved.active_adapter
                saved.save_pretrained(after, selected_adapters=[active])
                after = after if active == "default" else after / active
            else:
                saved.save_pretrained(after)
        yield before, str(after)
