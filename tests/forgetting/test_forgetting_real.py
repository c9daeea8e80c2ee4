"""A masked model whose held-out loss its makers wrote down, and tasks that others published."""

import numpy as np
import pytest

import intruscope
from intruscope.forgetting.losses import measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.tasks import ChoiceTask, ClassificationTask
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut

pytestmark = pytest.mark.real


def test_the_held_out_loss_of_the_masked_model(real_data):
    """Its README: 3.32 nats per masked token, at 15% masked, on these 600 sequences; here, 24 of them."""
    model = str(real_data / "models" / "minilm-mlm")
    language = load_pair(model, model, device="cpu").language_model()
    corpus = read_texts([real_data / "text" / "minilm_mlm_heldout.txt"])
    assert corpus.sha256 == "4e09b676f517e376e610286f0a37ca189c26f057a4ce887125bb12090d63b270"
    assert cut(corpus, language).num_sequences == 600
    sequences = cut(corpus, language, max_sequences=24)
    assert np.median([len(window.ids) for window in sequences.windows]) == 64
    fast = measure(language, sequences, protocol="fast")
    assert fast.nats_per_token == pytest.approx(3.32, abs=0.3)  # 24 of 600: two standard errors
    few = cut(corpus, language, max_sequences=3)
    exact = measure(language, few, protocol="exact").nats_per_token
    assert exact < measure(language, few, protocol="fast").nats_per_token < exact + 1.0


def test_a_model_that_never_had_a_head(real_data):
    with pytest.raises(intruscope.IntruscopeError, match="without a language-model head"):
        load_pair(str(real_data / "models" / "minilm"), str(real_data / "models" / "minilm")).language_model()


TASKS = {
    "sst2/dev.tsv": (ClassificationTask, 872, {"0", "1"}),
    "mnli/dev.json": (ClassificationTask, 1000, {"contradiction", "entailment", "neutral"}),
    "qqp/dev.json": (ClassificationTask, 1000, {"0", "1"}),
    "mrpc/dev.json": (ClassificationTask, 367, {"0", "1"}),
    "cola/dev.json": (ClassificationTask, 856, {"0", "1"}),
    "rte/dev.json": (ClassificationTask, 249, {"entailment", "not_entailment"}),
    "fever/paper_dev.jsonl": (ClassificationTask, 9999, {"SUPPORTS", "REFUTES", "NOT ENOUGH INFO"}),
    "fever/fever_symmetric_test.jsonl": (ClassificationTask, 712, {"SUPPORTS", "REFUTES"}),
    "winogrande/dev.jsonl": (ChoiceTask, 1267, None),
    "siqa/all_1954.json": (ChoiceTask, 1954, None),
    "boolq/test.json": (ChoiceTask, 3270, None),
}


@pytest.mark.parametrize("name", TASKS)
def test_published_tasks_are_read(name, real_data):
    kind, count, labels = TASKS[name]
    task = intruscope.load_task(real_data / "tasks" / name)
    assert isinstance(task, kind)
    if isinstance(task, ClassificationTask):
        assert len(task.texts) == len(task.labels) == count
        assert set(task.labels) == labels
        assert (task.texts[0][1] is not None) == name.startswith(
            ("mnli", "qqp", "mrpc", "rte", "fever/fever")
        )
    else:
        assert len(task.choices) == count
        assert {choice.answer for choice in task.choices} == set(range(len(task.choices[0].endings)))
