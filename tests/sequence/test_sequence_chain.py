"""A chain shows what was planted, nothing where nothing was, and writes what it says it writes."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from sequence_models import planted, settings, write_base

from intruscope.engine.settings import RunOptions
from intruscope.errors import OutputConflict, UnsupportedFormat, UsageError
from intruscope.forgetting.forget import forget
from intruscope.forgetting.tasks import ChoiceExample, ChoiceTask
from intruscope.forgetting.texts import read_texts
from intruscope.report.sequence import chain_sentence, chain_summary
from intruscope.sequence.chain import _Chain, chain
from intruscope.sequence.heads import fit_classes
from intruscope.sequence.plan import stage_seed
from intruscope.sequence.records import ChainTask, chain_json
from intruscope.spectra.scan import scan

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LORA = {"options": {"rank": 4, "alpha": 8.0}, "rate": 4e-2, "steps": 24}


def two_tasks(num=100):
    return [planted("ends", 0, 3, num=num), planted("middle", 1, 2, num=num)]


def sentences(file):
    file.write_text("\n".join(text for text, _ in planted("text", 0, 1, num=40, seed=9).train.texts) + "\n")
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A chain of LoRA over two tasks; nothing that it made is dropped."""
    folder = tmp_path_factory.mktemp("chain")
    base = write_base(folder / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Chain, "_drop_before", lambda *_: None)
        report = chain(
            str(base), tasks=two_tasks(), out=folder / "out", settings=settings(**LORA),
            text=read_texts([sentences(folder / "text.txt")]),
        )  # fmt: skip
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    return folder, report


def by_hand(base, *adapters):
    """The base with adapters added to it in float64, from their files."""
    tensors = {name: tensor.double() for name, tensor in load_file(base / "model.safetensors").items()}
    for folder in adapters:
        scale = json.loads((folder / "adapter_config.json").read_text())
        stored = load_file(folder / "adapter_model.safetensors")
        for name in [key for key in stored if key.endswith("lora_A.weight")]:
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            down, up = stored[name].double(), stored[name.replace("lora_A", "lora_B")].double()
            tensors[f"{module}.weight"] += scale["lora_alpha"] / scale["r"] * up @ down
    return tensors


def assert_is(body, expected):
    """Equal to float32 rounding, and exactly where nothing was added."""
    found = load_file(body / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        off = (found[name].double() - tensor).abs().max()
        assert off <= 2.0**-22 * tensor.abs().max(), name
        if "Norm" in name or "embeddings" in name or "cls." in name or name.endswith("bias"):
            assert off == 0.0, name


def test_two_merged_stages_are_the_base_and_both_updates(made):
    folder, _ = made
    first, second = (folder / "out" / "stages" / name for name in ("1-ends", "2-middle"))
    whole = by_hand(folder / "base", first / "run" / "model", second / "run" / "model")
    assert_is(second / "body", whole)
    one = by_hand(folder / "base", first / "run" / "model")
    assert_is(first / "body", one)
    changed = [name for name in whole if not torch.equal(whole[name], one[name])]
    assert len(changed) == 12  # every linear layer of the blocks, in each stage


def test_intruders_and_sizes_are_those_of_a_scan_of_the_written_body(made):
    folder, report = made
    counts = []
    for stage in report.stages:
        body = folder / "out" / "stages" / f"{stage.stage}-{stage.task}" / "body"
        found = scan(str(folder / "base"), str(body), options=RunOptions(workers=0))
        assert found.complete and stage.weights.complete
        scanned = {m.name: m for m in found.matrices if m.scope == "paper"}
        assert {m.name for m in stage.weights.matrices} == scanned.keys() and len(scanned) == 12
        for matrix in stage.weights.matrices:
            assert matrix.num_intruders == scanned[matrix.name].sides[0].num_intruders
            assert matrix.update_norm == scanned[matrix.name].update.frobenius_norm
        counts.append(stage.weights.num_intruders)
        assert counts[-1] == sum(m.sides[0].num_intruders for m in scanned.values())
        after, before = (load_file(each / "model.safetensors") for each in (body, folder / "base"))
        pairs = [(after[f"{name}.weight"].double(), before[f"{name}.weight"].double()) for name in scanned]
        norm = torch.stack([(new - old).norm() for new, old in pairs]).norm().item()
        of_base = torch.stack([old.norm() for _, old in pairs]).norm().item()
        assert stage.weights.update_norm == pytest.approx(norm, rel=1e-5)
        assert stage.weights.relative_update_norm == pytest.approx(norm / of_base, rel=1e-5)
        assert 1.0 < stage.weights.effective_rank <= 4 * stage.stage + 1e-3
    assert counts[0] > 0 and report.map_matrix in scanned
    assert report.stages[1].similarity.num_base == 4


def test_scores_are_those_of_a_head_on_what_transformers_itself_makes_of_the_body(made):
    folder, report = made
    tasks = {task.name: task for task in two_tasks()}
    places = {0: folder / "base", 1: folder / "out" / "stages" / "1-ends" / "body",
              2: folder / "out" / "stages" / "2-middle" / "body"}  # fmt: skip
    for stage, place in places.items():
        body = transformers.AutoModel.from_pretrained(
            place, dtype=torch.float32, add_pooling_layer=False
        ).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        for name, task in tasks.items():
            sides = []
            for side in (task.train, task.held_out):
                batch = tokenizer([text for text, _ in side.texts], return_tensors="pt", padding=True)
                with torch.no_grad():
                    sides.append(body(**batch).last_hidden_state[:, 0].double().numpy())
            labels = [np.array(side.numbers(("other", "same"))) for side in (task.train, task.held_out)]
            head = fit_classes(sides[0], labels[0], num_classes=2)
            cell = report.cell(stage, name)
            assert cell.accuracy.estimate == pytest.approx(
                (head.classes(sides[1]) == labels[1]).mean(), abs=0.021
            )
            assert cell.head.loss == pytest.approx(head.loss, abs=1e-3) and cell.head.converged
            assert (cell.head.num_examples, cell.head.num_features) == (100, 32)


def test_forgetting_is_that_of_forget(made):
    folder, report = made
    body = folder / "out" / report.model
    found = forget(str(folder / "base"), str(body), text=folder / "text.txt", protocol="fast")
    last = report.stages[-1].forgetting
    assert last.change.estimate == pytest.approx(found.forgetting.estimate, abs=1e-9)
    assert (last.change.low, last.change.high) == pytest.approx(
        (found.forgetting.low, found.forgetting.high), abs=1e-9
    )
    assert last.loss == pytest.approx(found.tuned_loss.nats_per_token.estimate)
    assert abs(last.change.estimate) > 1e-3


def test_the_folder_is_finished_and_refuses_a_second_run(made):
    folder, report = made
    written = json.loads((folder / "out" / "chain.json").read_text())
    assert written == json.loads(json.dumps(chain_json(report))) and written["schema"] == "intruscope.chain/1"
    assert [stage.seed for stage in report.stages] == [stage_seed(0, 1), stage_seed(0, 2)]
    assert len({stage_seed(seed, stage) for seed in range(20) for stage in range(1, 8)}) == 140
    with pytest.raises(OutputConflict, match="finished chain"):
        chain(str(folder / "base"), tasks=two_tasks(), out=folder / "out", settings=settings(**LORA))
    names = {path.name for path in (folder / "out" / "pictures").iterdir()}
    assert names == {f"{name}.{end}" for name in ("accuracy-matrix", "tasks", "weights", "similarity")
                     for end in ("png", "svg")}  # fmt: skip
    matrix = (folder / "out" / "pictures" / "accuracy-matrix.svg").read_text()
    assert all(f">{100 * cell.accuracy.estimate:.1f}<" in matrix for cell in report.cells)


def test_the_terminal_fits_and_says_what_the_interval_says(made):
    from rich.console import Console

    _, report = made
    console = Console(width=100, record=True, file=io.StringIO())
    for part in chain_summary(report):
        console.print(part)
    text = console.export_text()
    assert "…" not in text and f"{report.stages[1].weights.num_intruders} of 120" in text
    for low, high, word in ((-0.2, -0.1, "lost"), (0.1, 0.2, "gained"), (-0.1, 0.1, "No measurable loss")):
        transfer = report.stages[-1].transfer
        interval = dataclasses.replace(transfer.backward_transfer, low=low, high=high)
        last = dataclasses.replace(
            report.stages[-1], transfer=dataclasses.replace(transfer, backward_transfer=interval)
        )
        assert word in chain_sentence(dataclasses.replace(report, stages=(report.stages[0], last)))


def test_a_task_about_other_words_costs_the_former(tmp_path):
    """Planted: the second task asks to bring other words together, and the body gives up the first."""
    tasks = [planted("ends", 0, 3, num=400), planted("middle", 1, 2, num=400)]
    report = chain(
        str(write_base(tmp_path / "base")), tasks=tasks, out=tmp_path / "out",
        settings=settings("full", rate=2e-3, steps=200),
    )  # fmt: skip
    ends = [report.cell(stage, "ends") for stage in range(3)]
    assert ends[0].accuracy.estimate < 0.8 and ends[1].accuracy.estimate > 0.95
    assert ends[2].accuracy.estimate < 0.9 and ends[2].against_best.mcnemar_p < 1e-4
    assert ends[2].against_own.difference.high < 0
    assert report.stages[1].transfer.backward_transfer.high < 0
    assert report.stages[1].transfer.forgetting > 0.05
    assert "lost" in chain_sentence(report)


def test_a_task_of_the_same_rule_costs_the_former_nothing(tmp_path):
    """The twin: the second task asks the first's question of other examples."""
    tasks = [planted("ends", 0, 3, num=300), planted("again", 0, 3, num=300, seed=50)]
    report = chain(
        str(write_base(tmp_path / "base")), tasks=tasks, out=tmp_path / "out",
        settings=settings("full", rate=2e-3, steps=160),
    )  # fmt: skip
    ends = [report.cell(stage, "ends").accuracy.estimate for stage in range(3)]
    assert ends[0] < 0.8 and ends[1] > 0.95 and ends[2] > 0.95
    transfer = report.stages[1].transfer
    assert transfer.backward_transfer.high > 0 and transfer.forgetting < 0.03
    assert transfer.forward_transfer.low > 0.2  # the second was learned with the first
    assert "lost" not in chain_sentence(report)


def test_a_chain_that_trains_nothing_leaves_every_figure_at_the_base(tmp_path):
    still = settings("lora", rate=0.0, steps=1)
    report = chain(
        str(write_base(tmp_path / "base")), tasks=two_tasks(60), out=tmp_path / "out", settings=still,
        text=read_texts([sentences(tmp_path / "text.txt")]),
    )  # fmt: skip
    records = [json.loads(line.split(b" ", 1)[1]) for line in
               (tmp_path / "out" / "journal" / "records.jsonl").read_bytes().splitlines()]  # fmt: skip
    scored = {key: record["right"] for key, record in records if key.startswith("scored/")}
    for task in report.tasks:
        assert scored[f"scored/0/{task}"] == scored[f"scored/1/{task}"] == scored[f"scored/2/{task}"]
        assert {report.cell(stage, task).head for stage in range(3)} == {report.cell(0, task).head}
        assert report.cell(2, task).against_baseline.mcnemar_p == 1.0
    for stage in report.stages:
        assert (stage.weights.num_intruders, stage.weights.update_norm) == (0, 0.0)
        assert stage.weights.effective_rank is None
        assert (stage.forgetting.change.low, stage.forgetting.change.high) == (0.0, 0.0)
    assert report.stages[-1].transfer.backward_transfer.estimate == 0.0
    assert report.stages[-1].transfer.forgetting == 0.0
    start = load_file(tmp_path / "base" / "model.safetensors")
    end = load_file(tmp_path / "out" / report.model / "model.safetensors")
    assert all(torch.equal(end[name], start[name].float()) for name in start)
    assert not (tmp_path / "out" / "stages" / "1-ends" / "body").exists()  # only the last one is kept


def test_a_kept_adapter_is_one_update_that_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(_Chain, "_drop_before", lambda *_: None)
    base = write_base(tmp_path / "base")
    kept = settings(chain={"between": "keep"}, **(LORA | {"steps": 8, "watch_every": 4}))
    report = chain(str(base), tasks=two_tasks(60), out=tmp_path / "out", settings=kept, pictures=False)
    written = {path.name for path in (tmp_path / "out").rglob("*.*")}
    assert "looks.jsonl" in written and not any(name.endswith((".png", ".svg")) for name in written)
    first, second = (tmp_path / "out" / "stages" / name for name in ("1-ends", "2-middle"))
    assert_is(second / "body", by_hand(base, second / "run" / "model"))
    before, after = (
        load_file(each / "run" / "model" / "adapter_model.safetensors") for each in (first, second)
    )
    name = next(name for name in before if "lora_A" in name)
    moved = (after[name] - before[name]).norm() / before[name].norm()
    assert 0.0 < moved < 0.5  # a fresh start would be another random matrix
    assert report.stages[1].weights.effective_rank <= 4.001 and report.between == "keep"


def choices(num, seed):
    """Which of two words stands in the sentence."""
    texts, _ = zip(*planted("c", 0, 1, num=num, seed=seed).train.texts, strict=True)
    found = []
    for i, text in enumerate(texts):
        inside = text.split()[0]
        outside = next(word for word in ("red", "blue", "cat", "dog", "bird") if word not in text)
        endings = (inside, outside) if i % 2 else (outside, inside)
        found.append(ChoiceExample(prompts=(text, text), endings=endings, answer=0 if i % 2 else 1))
    return ChoiceTask(name="choices", choices=tuple(found), sha256=f"{num}-{seed}")


def test_multiple_choice_is_scored_by_a_head_over_the_choices(tmp_path):
    tasks = [
        ChainTask(name="choice", train=choices(200, 0), held_out=choices(100, 7)),
        planted("ends", 0, 3, num=100),
    ]
    report = chain(
        str(write_base(tmp_path / "base")), tasks=tasks, out=tmp_path / "out",
        settings=settings("full", rate=2e-3, steps=40),
    )  # fmt: skip
    found = [report.cell(stage, "choice") for stage in range(3)]
    assert found[0].accuracy.estimate > 0.35 and found[1].accuracy.estimate > 0.8
    assert found[1].head.num_examples == 200 and found[1].head.num_features == 32


def test_what_cannot_be_chained_is_refused_before_anything_is_written(tmp_path):
    base = str(write_base(tmp_path / "base"))
    ends = planted("ends", 0, 3, num=20)
    bad = dataclasses.replace(ends, name="a/b")
    for tasks, method, match in (
        ([ends], "lora", "1 task"),
        ([ends, ends], "lora", "ends is listed twice"),
        ([ends, bad], "lora", "cannot name a folder"),
        (two_tasks(20), "construct", "cannot be trained"),
        (two_tasks(20), "lora_experts", "depends on the input"),
    ):
        with pytest.raises(UsageError, match=match):
            chain(base, tasks=tasks, out=tmp_path / "out", settings=settings(method))
    for method in ("pissa", "sora", "adalora"):
        kept = settings(method, chain={"between": "keep"})
        with pytest.raises(UsageError, match=f"--between keep does not work with {method}"):
            chain(base, tasks=two_tasks(20), out=tmp_path / "out", settings=kept)
    few = settings(chain={"num_head_examples": 1})
    with pytest.raises(UsageError, match="--head-examples"):
        chain(base, tasks=two_tasks(20), out=tmp_path / "out", settings=few)
    assert not (tmp_path / "out").exists()


def test_a_base_that_stores_its_weights_otherwise_is_refused_before_training(tmp_path):
    from safetensors.torch import save_file

    base = write_base(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in stored.items()}
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises((UnsupportedFormat, OSError), match="save_pretrained|gamma|missing"):
        chain(str(base), tasks=two_tasks(20), out=tmp_path / "out", settings=settings())
    assert not (tmp_path / "out").exists()
