"""The loss on a fixed text: that of the model as it is now, whatever head the training needs."""

import sys
from pathlib import Path

import pytest
import torch
import transformers
from train_models import Tokens, arguments, llama, trainer, with_lora
from transformers import Trainer, default_data_collator

from intruscope.adapters.live import LanguageModel
from intruscope.adapters.live_models import max_context
from intruscope.errors import UsageError
from intruscope.forgetting.losses import measure
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut
from intruscope.train import IntruderWatch

sys.path.insert(0, str(Path(__file__).parents[1] / "forgetting"))
from forgetting_models import TEXT, byte_tokenizer, word_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


def fresh_loss(model, tokenizer, kind, text):
    language = LanguageModel(
        model=model.eval(), tokenizer=tokenizer, kind=kind, max_context=max_context(model, tokenizer)
    )
    sequences = cut(read_texts([text]), language, max_sequences=64)
    protocol = "causal" if kind == "causal" else "fast"
    return measure(language, sequences, protocol=protocol).nats_per_token


def test_a_language_model_is_measured_at_every_look(tmp_path, text):
    tokenizer = byte_tokenizer(begins=True)
    torch.manual_seed(0)
    config = llama().config
    config.vocab_size = len(tokenizer)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "base")
    run = trainer(
        with_lora(model), tmp_path / "run", processing_class=tokenizer, data_collator=default_data_collator
    )
    watch = IntruderWatch(run, every=4, text=text)
    run.add_callback(watch)
    run.train()
    assert model.training
    base = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    first = fresh_loss(base, tokenizer, "causal", text)
    assert watch.looks[0].loss == pytest.approx(first, rel=1e-6)
    assert watch.looks[0].forgetting == 0.0
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(base, tmp_path / "run" / "checkpoint-8").merge_and_unload()
    then = fresh_loss(tuned, tokenizer, "causal", text)
    assert watch.looks[2].loss == pytest.approx(then, rel=1e-5)
    assert watch.looks[2].forgetting == pytest.approx(then - first, rel=1e-4)
    assert abs(then - first) > 1e-2


class Classes(Tokens):
    def __getitem__(self, index):
        return {"input_ids": self.rows[index] % 20, "labels": index % 2}


def test_a_classifier_is_measured_under_the_head_of_its_base(tmp_path, text):
    tokenizer = word_tokenizer()
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=2)

    def run_with(watch_options, folder):
        run = Trainer(
            model=model, args=arguments(folder, max_steps=4, learning_rate=1e-2), train_dataset=Classes(),
            processing_class=tokenizer, data_collator=default_data_collator,
        )  # fmt: skip
        watch = IntruderWatch(run, every=4, text=text, **watch_options)
        run.add_callback(watch)
        return run, watch

    run, _ = run_with({}, tmp_path / "refused")
    with pytest.raises(UsageError, match="language-model head"):
        run.train()
    run, watch = run_with({"base": tmp_path / "base"}, tmp_path / "run")
    run.train()
    expected = transformers.BertForMaskedLM.from_pretrained(tmp_path / "base")
    first = fresh_loss(expected, tokenizer, "masked", text)
    assert watch.looks[0].loss == pytest.approx(first, rel=1e-5)
    expected.bert = model.bert
    assert watch.looks[-1].loss == pytest.approx(fresh_loss(expected, tokenizer, "masked", text), rel=1e-5)
    assert watch.looks[-1].loss != pytest.approx(first, rel=1e-4)
