"""Claim: the exact pseudo-loss runs at least twice as fast as one masked copy at a time.

Uses a BERT-shaped masked model with random weights (or ``--model``) and lines of pseudo-words with
heavy-tailed lengths. The naive loop masks one token, runs the whole model on that copy alone, and takes its
log-probability. Both must agree; the time is for one model. Two figures show what limits the fast protocol:
the share of its time that the same rows take without the head (the body), and the share of padding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from benchmarks.common import publish
from intruscope.forgetting.losses import _batches, _rows, measure
from intruscope.forgetting.models import load_pair
from intruscope.forgetting.texts import read_texts
from intruscope.forgetting.windows import cut

WORDS = 30_522


def make_model(folder: Path, width: int, layers: int) -> Path:
    """A masked model with BERT's vocabulary size, and a tokenizer with the same number of pseudo-words."""
    torch.manual_seed(0)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS - 5))]
    tokenizer = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep", "mask")}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, **special
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


def make_text(path: Path, sequences: int, longest: int) -> Path:
    """Lines whose lengths are heavy-tailed, up to the longest."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(longest, np.ceil(12 * (1 + generator.pareto(1.5, sequences)))).astype(int)
    lines = [" ".join(f"w{i}" for i in generator.integers(0, WORDS - 5, n)) for n in lengths]
    path.write_text("\n".join(lines) + "\n")
    return path


@torch.inference_mode()
def one_at_a_time(language, sequences) -> np.ndarray:
    """Nats of each sequence, one masked copy per forward pass."""
    nats = np.zeros(sequences.num_sequences)
    for window in sequences.windows:
        for position in window.scored:
            ids = torch.from_numpy(window.ids.copy())[None]
            target = int(ids[0, position])
            ids[0, position] = language.tokenizer.mask_token_id
            logits = language.model(input_ids=ids).logits[0, position]
            nats[window.sequence] -= float(torch.log_softmax(logits.float(), 0)[target])
    return nats


@torch.inference_mode()
def body_seconds(language, sequences, batch_tokens: int) -> tuple[float, float]:
    """Seconds for the body alone on the same batches, and the share of positions that are padding."""
    rows = _rows(sequences.windows, "exact", 0)
    started = time.perf_counter()
    positions = real = 0
    for batch in _batches(rows, batch_tokens, WORDS):
        ids = torch.zeros((len(batch), len(batch[0])), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(batch):
            ids[index, : len(row)] = torch.from_numpy(row.window.ids)
            mask[index, : len(row)] = 1
        language.model.base_model(input_ids=ids, attention_mask=mask)
        positions, real = positions + ids.numel(), real + int(mask.sum())
    return time.perf_counter() - started, 1 - real / positions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="A masked model on disk instead of a random one.")
    parser.add_argument("--text", type=Path, help="Text for that model, one sequence per line.")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--sequences", type=int, default=12)
    parser.add_argument("--longest", type=int, default=64)
    parser.add_argument("--batch-tokens", nargs="*", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = given.model or make_model(folder, given.width, given.layers)
        text = given.text or make_text(folder / "text.txt", given.sequences, given.longest)
        language = load_pair(str(model), str(model), device="cpu").language_model()
        sequences = cut(read_texts([text]), language, max_sequences=given.sequences)
    loop, fast = [], {size: [] for size in given.batch_tokens}
    for _ in range(given.repeats):  # interleaved, so that other load affects all alike
        started = time.perf_counter()
        expected = one_at_a_time(language, sequences)
        loop.append(time.perf_counter() - started)
        for size, seconds in fast.items():
            started = time.perf_counter()
            got = measure(language, sequences, protocol="exact", batch_tokens=size).nats
            seconds.append(time.perf_counter() - started)
            error = float(np.abs(got - expected).sum() / sequences.num_tokens)
            assert error < 1e-5, error
    tokens = sequences.num_tokens
    rows = []
    for size, seconds in fast.items():
        body, padding = body_seconds(language, sequences, size)
        rows.append(
            {
                "batch_tokens": size,
                "tokens_per_second": round(tokens / min(seconds), 1),
                "times_the_loop": round(min(loop) / min(seconds), 2),
                "body_share_of_time": round(min(1.0, body / min(seconds)), 2),
                "padding_share": round(padding, 4),
            }
        )
    publish(
        "forgetting",
        {
            "claim": "at least 2 times one masked copy at a time",
            "model": given.model.name
            if given.model
            else f"random, {given.layers} layers, {given.width} wide",
            "threads": given.threads,
            "repeats": given.repeats,
            "sequences": sequences.num_sequences,
            "tokens": tokens,
            "loop_tokens_per_second": round(tokens / min(loop), 1),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
