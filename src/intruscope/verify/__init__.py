"""Whether a merged model holds the adapters that it should hold, module by module, and what else it changed.

``intruscope.verify(base, adapter, merged)`` is the library's form of the command. Nothing here runs a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.verify.records import ModuleCheck, OtherTensor, VerifyReport
    from intruscope.verify.run import verify

__all__ = [
    "ModuleCheck",
    "OtherTensor",
    "VerifyReport",
    "verify",
]

_HOMES = {
    "ModuleCheck": "intruscope.verify.records",
    "OtherTensor": "intruscope.verify.records",
    "VerifyReport": "intruscope.verify.records",
    "verify": "intruscope.verify.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
