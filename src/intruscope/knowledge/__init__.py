"""Which facts a fine-tune learned and which it lost, beside what other prompts alone would change.

``intruscope.knowledge(base, tuned, facts=...)`` is the library's form of the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from intruscope.lazy import callable_like_its_verb, lazy_names

if TYPE_CHECKING:
    from intruscope.knowledge.records import KnowledgeReport
    from intruscope.knowledge.run import knowledge
    from intruscope.knowledge.settings import KnowledgeSettings

__all__ = [
    "KnowledgeReport",
    "KnowledgeSettings",
    "knowledge",
]

_HOMES = {
    "KnowledgeReport": "intruscope.knowledge.records",
    "KnowledgeSettings": "intruscope.knowledge.settings",
    "knowledge": "intruscope.knowledge.run",
}

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
callable_like_its_verb(__name__)
