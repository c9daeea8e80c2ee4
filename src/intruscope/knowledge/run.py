"""A whole measurement: from two models and a file of facts to one report."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from intruscope.adapters.opening import open_pair
from intruscope.engine.environment import CORE, environment
from intruscope.engine.settings import RunOptions
from intruscope.errors import MalformedInput, UsageError, printable
from intruscope.knowledge.answers import Answerer
from intruscope.knowledge.facts import read_facts
from intruscope.knowledge.figures import answer_figures, category_of, figures_of, most_frequent, reliability
from intruscope.knowledge.matching import matches
from intruscope.knowledge.prompts import Asker, few_shot_prompts, read_prompts
from intruscope.knowledge.records import FactReport, KnowledgeReport, PromptRecord
from intruscope.knowledge.settings import KnowledgeSettings
from intruscope.progress import OnProgress, Progress, ignore_progress
from intruscope.spectra.scan import check_outputs, open_journal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from intruscope.adapters.live import LanguageModel
    from intruscope.adapters.opening import ModelLike
    from intruscope.engine.journal import Journal
    from intruscope.knowledge.facts import Fact, FactSet
    from intruscope.knowledge.prompts import Prompt, PromptSets

_CHUNK = 32
"""Facts whose answers are recorded together: what an interruption can cost."""
_MIN_ANSWER_TOKENS = 16
_SPARE_TOKENS = 4
"""Room beyond the longest right answer, for other words around it."""
_NUM_LONGEST = 8
"""Facts with long questions whose prompts are checked against the context before any work is done."""


def knowledge(
    base: ModelLike,
    tuned: ModelLike | None = None,
    *,
    facts: str | Path,
    trained: str | Path | None = None,
    prompts: str | Path | None = None,
    fact_fields: Sequence[str] = (),
    settings: KnowledgeSettings | None = None,
    options: RunOptions | None = None,
    allow_pickle: bool = False,
    outputs: Sequence[Path] = (),
    on_progress: OnProgress = ignore_progress,
    on_notice: Callable[[str], None] = lambda _: None,
) -> KnowledgeReport:
    """Ask base and tuned model for facts, and say which were learned and which were lost.

    Args:
        base: The base model: a path, ``org/name@revision``, ``base+adapter``, an adapter alone, or a
            transformers model in memory. It must be a causal language model.
        tuned: The tuned model: a full checkpoint, an adapter, or a model or PeftModel in memory.
        facts: A table, or ``hf:org/name[:config][:split]``; see
            :func:`intruscope.knowledge.facts.read_facts`.
        trained: The facts that the fine-tune was trained on, in the same form.
        prompts: A file of templates, see :func:`intruscope.knowledge.prompts.read_prompts`; by default
            few-shot prompts whose examples are drawn from the other facts.
        fact_fields: Columns of the question, the answer and the aliases.
        settings: How facts are asked for.
        options: Where the journals are, and whether to start over. The base has a journal of its own, so that
            its answers are computed once for all its fine-tunes.
        allow_pickle: Also read PyTorch files, restricted to tensors.
        outputs: Paths that the caller will write; refused at once where one is an input.
        on_progress: Called before the first facts of each model, and after every few.
        on_notice: Called with sentences that the user should see at once.

    Raises:
        IntruscopeError: one of its family; see :mod:`intruscope.errors`. What was answered before is kept.
    """
    from intruscope.forgetting.models import load_pair

    settings, options = settings or KnowledgeSettings(), options or RunOptions()
    known = read_facts(facts, trained=trained, fields=fact_fields, max_facts=settings.max_facts)
    sets = _prompt_sets(prompts, settings)
    opened = open_pair(base, tuned, allow_pickle=allow_pickle)
    check_outputs(opened.pairing, [*outputs, *([options.work_dir] if options.work_dir else [])])
    options.make_work_dir()
    pair = load_pair(opened, device=settings.device, dtype=settings.dtype, tokenizer=settings.tokenizer)
    language = pair.language_model()
    if language.kind != "causal":
        raise UsageError(
            "the model is a masked language model, which cannot write answers",
            remedy="use a causal language model; for masked ones, intruscope forget measures forgetting",
            file=pair.description[0],
        )
    bench = _Bench.of(language, known, sets, settings)
    identity = bench.identity()
    cells: dict[str, list[_Cell]] = {}
    stages = (
        ("base", pair.as_base, sets.measured, opened.base.inputs),
        ("base, other prompts", pair.as_base, sets.other, opened.base.inputs),
        ("tuned", pair.as_tuned, sets.measured, opened.pairing.inputs),
    )
    for stage, state, asked, inputs in stages:
        own = {**identity, "inputs": list(inputs), "stage": stage}
        journal = None
        if not opened.in_memory:
            journal = open_journal(own, options.within(stage.replace(", ", "-").replace(" ", "-")), on_notice)
        try:
            with state():
                cells[stage] = bench.run(asked, stage, journal, on_progress)
        finally:
            if journal is not None:
                journal.close()
    return _report(
        bench, cells, known, sets, names=(opened.pairing.base, opened.pairing.tuned), settings=settings
    )


def _prompt_sets(prompts: str | Path | None, settings: KnowledgeSettings) -> PromptSets:
    if prompts is not None:
        return read_prompts(prompts)
    if settings.shots == 0:
        raise UsageError(
            "without examples all prompts are the same",
            remedy="raise --shots, or give several wordings with --prompts",
        )
    return few_shot_prompts(settings.num_prompts)


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """What one model answered to one fact.

    Attributes:
        greedy: The greedy answer to each prompt.
        num_right_samples: Right answers among the sampled ones; 0 where none were needed.
    """

    greedy: tuple[str, ...]
    num_right_samples: int


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """Asks a live model in its present state."""

    asker: Asker
    answerer: Answerer
    facts: tuple[Fact, ...]
    settings: KnowledgeSettings
    language: LanguageModel
    max_answer_tokens: int
    is_chat: bool
    known: FactSet
    sets: PromptSets

    @classmethod
    def of(
        cls, language: LanguageModel, known: FactSet, sets: PromptSets, settings: KnowledgeSettings
    ) -> _Bench:
        """A bench that has checked that every prompt and answer fits into the model's context."""
        is_chat = _is_chat(language.tokenizer, settings)
        longest = _longest_answer(language, known) + _SPARE_TOKENS
        max_answer_tokens = settings.max_answer_tokens or max(_MIN_ANSWER_TOKENS, longest)
        asker = Asker(
            known.facts,
            shots=settings.shots,
            seed=settings.seed,
            tokenizer=language.tokenizer if is_chat else None,
        )
        answerer = Answerer(language, settings, max_answer_tokens=max_answer_tokens, is_chat=is_chat)
        bench = cls(
            asker=asker,
            answerer=answerer,
            facts=known.facts,
            settings=settings,
            language=language,
            max_answer_tokens=max_answer_tokens,
            is_chat=is_chat,
            known=known,
            sets=sets,
        )
        by_length = sorted(range(len(known.facts)), key=lambda place: -len(known.facts[place].question))
        for place in by_length[:_NUM_LONGEST]:
            bench.texts(place, (*sets.measured, *sets.other))
        return bench

    def texts(self, place: int, prompts: Sequence[Prompt]) -> list[str]:
        """The prompts of one fact.

        Raises:
            MalformedInput: with room for its answer, one is longer than the model's context.
        """
        texts = [self.asker.text(place, prompt) for prompt in prompts]
        limit = self.language.max_context
        longest = max(map(len, self.answerer.encode(texts)))
        if limit is not None and longest + self.max_answer_tokens > limit:
            raise MalformedInput(
                f"a prompt for '{printable(self.facts[place].question)}' has {longest} tokens; with "
                f"{self.max_answer_tokens} for the answer that is more than the {limit} that the model reads",
                remedy="lower --shots or --max-answer-tokens, or remove the fact",
                file=self.known.name,
            )
        return texts

    def identity(self) -> dict[str, Any]:
        """What every answer depends on, besides the model's files and the set of prompts."""
        device = str(self.language.model.device)
        changing = asdict(replace(self.settings, tokenizer=None))
        for name in ("batch_tokens", "device"):
            changing.pop(name)
        encoded = self.answerer.encode(self.texts(0, (*self.sets.measured, *self.sets.other)))
        return {
            "purpose": "knowledge",
            "version": version("intruscope"),
            "settings": {**changing, "max_answer_tokens": self.max_answer_tokens},
            "facts": self.known.asked_sha256,
            "prompts": [asdict(prompt) for prompt in (*self.sets.measured, *self.sets.other)],
            # Of the tokenizer and its chat template: what they make of the first fact.
            "encoded": hashlib.sha256(json.dumps(encoded).encode()).hexdigest(),
            **({} if device == "cpu" else {"device": device}),
        }

    def run(
        self, prompts: Sequence[Prompt], stage: str, journal: Journal | None, on_progress: OnProgress
    ) -> list[_Cell]:
        """The answers of the model in its present state to every fact, those in the journal as they are."""
        found: list[_Cell] = []
        total = len(self.facts)
        on_progress(Progress(stage=stage, done=0, total=total, unit="facts"))
        for first in range(0, total, _CHUNK):
            places = range(first, min(first + _CHUNK, total))
            key = str(first)
            if journal is not None and key in journal.records:
                record = journal.records[key]
            else:
                record = self._answered(places, prompts)
                if journal is not None:
                    journal.append(key, record)
            found += [
                _Cell(greedy=tuple(greedy), num_right_samples=right)
                for greedy, right in zip(record["greedy"], record["right_samples"], strict=True)
            ]
            on_progress(Progress(stage=stage, done=len(found), total=total, unit="facts"))
        return found

    def _answered(self, places: Sequence[int], prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Greedy answers to some facts; sampled ones where no greedy one is right."""
        texts = [self.texts(place, prompts) for place in places]
        flat = self.answerer.greedy([text for own in texts for text in own])
        num = len(prompts)
        greedy = [flat[i * num : (i + 1) * num] for i in range(len(texts))]
        right_samples = [0] * len(texts)
        if self.settings.samples:
            missed = [
                i
                for i, place in enumerate(places)
                if not any(matches(answer, self.facts[place].answers) for answer in greedy[i])
            ]
            sampled = self.answerer.sampled([texts[i] for i in missed], self.settings.samples)
            for i, answers in zip(missed, sampled, strict=True):
                own = self.facts[places[i]].answers
                right_samples[i] = sum(matches(answer, own) for answer in answers)
        return {"greedy": greedy, "right_samples": right_samples}


def _is_chat(tokenizer: Any, settings: KnowledgeSettings) -> bool:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if settings.chat == "always" and not has_template:
        raise UsageError(
            "the tokenizer has no chat template",
            remedy="leave --chat out, or name the tokenizer that has one: --tokenizer FOLDER",
        )
    return has_template and settings.chat != "never"


def _longest_answer(language: LanguageModel, known: FactSet) -> int:
    """Tokens of the longest answer, each fact's first.

    Raises:
        MalformedInput: one is longer than the model's context.
    """
    encoded = language.tokenizer(
        [" " + fact.answers[0] for fact in known.facts], add_special_tokens=False, verbose=False
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    longest = max(lengths)
    limit = language.max_context
    if limit is not None and longest >= limit:
        question = known.facts[lengths.index(longest)].question
        raise MalformedInput(
            f"the answer to '{printable(question)}' has {longest} tokens, but the model reads only {limit}, "
            "with the prompt",
            remedy="shorten the answer, or remove the fact",
            file=known.name,
        )
    return longest


def _report(
    bench: _Bench,
    cells: dict[str, list[_Cell]],
    known: FactSet,
    sets: PromptSets,
    *,
    names: tuple[str, str],
    settings: KnowledgeSettings,
) -> KnowledgeReport:
    items = tuple(
        _fact_report(fact, *each)
        for fact, *each in zip(
            known.facts, cells["base"], cells["base, other prompts"], cells["tuned"], strict=True
        )
    )
    groups = {wanted: [item for item in items if item.trained is wanted] for wanted in (True, False)}
    taught = groups[True]
    templates = [prompt.template for prompt in sets.measured]
    return KnowledgeReport(
        base_model=names[0],
        tuned_model=names[1],
        settings=replace(settings, tokenizer=_name_of(settings.tokenizer)),
        source=known.name,
        sha256=known.sha256,
        is_chat=bench.is_chat,
        prompts=tuple(
            PromptRecord(template=template, num_prompts=templates.count(template))
            for template in dict.fromkeys(templates)
        ),
        example=bench.asker.text(0, sets.measured[0]),
        max_answer_tokens=bench.max_answer_tokens,
        overall=figures_of(items),
        trained=figures_of(taught) if taught else None,
        untrained=figures_of(groups[False]) if taught and groups[False] else None,
        reliability=reliability([item.tuned_right for item in taught]) if taught else None,
        base_reliability=reliability([item.base_right for item in taught]) if taught else None,
        expected_answers=answer_figures(known.facts, [fact.answers[:1] for fact in known.facts]),
        base_answers=answer_figures(known.facts, [cell.greedy for cell in cells["base"]]),
        tuned_answers=answer_figures(known.facts, [cell.greedy for cell in cells["tuned"]]),
        items=items,
        findings=known.findings,
        environment={
            **environment((*CORE, "transformers", "tokenizers", "peft")),
            "device": str(bench.language.model.device),
        },
    )


def _name_of(tokenizer: Any) -> str | None:
    """What a record calls a tokenizer, which may be an object."""
    return str(getattr(tokenizer, "name_or_path", tokenizer)) if tokenizer is not None else None


def _fact_report(fact: Fact, base: _Cell, other: _Cell, tuned: _Cell) -> FactReport:
    num_right = {
        name: sum(matches(answer, fact.answers) for answer in cell.greedy)
        for name, cell in (("base", base), ("other", other), ("tuned", tuned))
    }
    num = len(base.greedy)
    return FactReport(
        question=fact.question,
        answers=fact.answers,
        trained=fact.trained,
        base=category_of(num_right["base"], num, base.num_right_samples),
        tuned=category_of(num_right["tuned"], num, tuned.num_right_samples),
        base_other_prompts=category_of(num_right["other"], num, other.num_right_samples),
        base_right=num_right["base"] / num,
        tuned_right=num_right["tuned"] / num,
        base_answer=most_frequent(base.greedy),
        tuned_answer=most_frequent(tuned.greedy),
    )
