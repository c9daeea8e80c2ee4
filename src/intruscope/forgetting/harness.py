"""A bridge to lm-evaluation-harness: both states of a live model on its tasks, scored by its rules."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from intruscope.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from intruscope.adapters.live import LivePair


def run_harness(
    pair: LivePair, tasks: Sequence[str | Mapping[str, Any]], *, batch_size: int = 8, **options: Any
) -> dict[str, dict[str, Any]]:
    """Evaluate base and tuned model with lm-evaluation-harness, loading the models only once.

    Args:
        pair: From ``load_pair``; a causal language model.
        tasks: Names of the harness's tasks, or its task definitions.
        batch_size: Sequences per batch.
        options: Passed on to ``lm_eval.simple_evaluate`` (``num_fewshot``, ``limit``, ``log_samples`` ...).

    Returns:
        ``base`` and ``tuned``, each with what the harness returns: ``results``, ``samples``, versions.

    Raises:
        UsageError: the harness is not installed, or the model is not causal.
        IntruscopeError: there is no language-model head.
    """
    if find_spec("lm_eval") is None:
        fact = "the harness's tasks need the package lm-eval, and lm-eval is not installed"
        raise UsageError(fact, remedy="install it with: pip install 'intruscope[eval]'")
    language = pair.language_model()
    if language.kind != "causal":
        raise UsageError(
            "the harness scores by likelihood and cannot run a masked language model",
            remedy="use --task, which scores by pseudo-likelihood",
        )
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(
        pretrained=language.model,
        tokenizer=language.tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=language.max_context,
    )
    found: dict[str, dict[str, Any]] = {}
    for state, inside in (("base", pair.as_base), ("tuned", pair.as_tuned)):
        with inside():
            # Requests and answers must not be cached: the two states would share them.
            found[state] = simple_evaluate(
                model=wrapped, tasks=list(tasks), use_cache=None, cache_requests=False, **options
            )
    return found
