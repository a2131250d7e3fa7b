"""What a GPU would have to do, counted on a CPU: steps that wait for the device, operations of a layer,
bytes that element-wise operations move, calls of the tokenizer. Speed is measured in `benchmarks/`."""

import random
import shutil
import traceback
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig
from ppo_world import fixed_episodes, make_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_kernel import varlen
from trainer_world import make_base, make_pairs

import reward_kit.model.packing as packing
import reward_kit.rl.ppo as ppo
from reward_kit import RewardConfig, RewardModel, RewardTrainer
from reward_kit.model.batches import RewardCollator, bind_reward_forward
from reward_kit.model.encoding import RewardEncoder, prepare_tokenizer
from reward_kit.model.model_folder import RewardMetadata, load_reward_backbone
from reward_kit.scores import text_scorer

ASK_THE_DEVICE = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
ASK_THE_DEVICE |= {"masked_scatter_backward"}  # selects by the mask
VIEWS = {
    *("view", "_unsafe_view", "transpose", "t", "slice", "split", "split_with_sizes", "unsqueeze", "squeeze"),
    *("select", "expand", "permute", "alias", "detach", "as_strided", "unbind", "lift_fresh"),
}
PRODUCTS = {"mm", "addmm", "bmm", "linear", "varlen", "varlen_backward"}


class Operations(TorchDispatchMode):
    "Counts operations, those that must wait for the device, and bytes of the element-wise ones."

    def __init__(self):
        super().__init__()
        self.count, self.waits, self.bytes = Counter(), Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, out = function.name().split("::")[1].split(".")[0], function(*args, **(kwargs or {}))
        by_mask = name.startswith(("index", "_index")) and any(
            t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1]) if isinstance(t, torch.Tensor)
        )
        if name in ASK_THE_DEVICE or by_mask:
            files = [f.filename for f in traceback.extract_stack()[:-1]]
            last = next(file for file in reversed(files) if "site-packages/torch/" not in file)
            self.waits[f"{name} in {last.rpartition('/')[2]}"] += 1
        if name not in VIEWS:
            self.count[name] += 1
        if name not in VIEWS | PRODUCTS:
            for tensor in tree_leaves((args, out)):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    self.bytes[tensor.dtype] += tensor.nbytes
        return out


# ---- a step of training


@contextmanager
def one_step_of(trainer, operations, step=3):
    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step:
                operations.__enter__()

        def on_step_end(self, args, state, control, **_):
            if state.global_step == step + 1:
                operations.__exit__(None, None, None)

    trainer.add_callback(Watch())
    yield
    assert operations.count["mm"] > 0


@pytest.mark.parametrize(
    "settings",
    [{}, {"layout": "padded"}, {"gradient_accumulation_steps": 2}, {"loss_type": "plackett_luce"},
     {"center_rewards_coefficient": 0.01}],
    ids=str,
)  # fmt: skip
def test_a_step_of_training_never_waits_for_the_device(tmp_path, settings):
    args = RewardConfig(
        str(tmp_path / "out"), max_steps=6, per_device_train_batch_size=4, logging_steps=100,
        save_strategy="no", show_plan=False, use_cpu=True, **settings,
    )  # fmt: skip
    trainer = RewardTrainer(make_base(tmp_path / "base"), args, train_dataset=make_pairs(64))
    operations = Operations()
    with one_step_of(trainer, operations):
        trainer.train()
    if settings.get("layout") == "padded":  # transformers looks whether there is any padding
        del operations.waits["_local_scalar_dense in masking_utils.py"]
    assert not operations.waits


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_micro_batches_of_ppo_never_wait_for_the_device(tmp_path, monkeypatch, critic, layout):
    "A step of the optimizer looks once whether the gradient is a number, however many there are."
    trainer = make_trainer(make_base(tmp_path / "base"), tmp_path / "out", critic=critic, layout=layout)
    episodes, waits = fixed_episodes(8), []
    trainer.set_advantages(episodes)
    batches = list(trainer._batches(episodes))  # laid out on the host, whatever the device
    for some in (batches[:1], batches):
        monkeypatch.setattr(trainer, "_batches", lambda _, some=some: some)
        operations = Operations()
        with operations:
            trainer._optimizer_step(episodes)
        if layout == "padded":  # transformers looks whether there is any padding
            del operations.waits["_local_scalar_dense in masking_utils.py"]
        assert operations.count["mm"] > 0
        waits.append(operations.waits)
    assert len(batches) == 4 and waits[0] == waits[1] and waits[0].total() == 1


# ---- a decoder layer


def make_model(layers, dtype):
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=layers, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = bind_reward_forward(transformers.Qwen3ForSequenceClassification(config))
    assert packing.packing_problem(model) is None
    return model.to(dtype).train()


def make_batch():
    draw = random.Random(0)
    tokens = lambda n: [draw.randrange(3, 64) for _ in range(n)]
    prompts = [tokens(20) for _ in range(4)]
    return RewardCollator(0, "packed")([{"sequences": [p + tokens(10), p + tokens(9)]} for p in prompts])


def rewards_of(model, batch, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return model(**batch.model_inputs()).logits.sum()


@pytest.fixture
def one_kernel(monkeypatch):
    "Attention as on a GPU: one operation."
    models = {(n, dtype): make_model(n, dtype) for n in (3, 4) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setattr(packing, "_flash_fits", lambda *_: True)
    monkeypatch.setattr(packing, "varlen_attn", lambda *args, **_: varlen(*args))
    return models


# operations forward and backward, and bytes of element-wise ones for each number of the residual stream
BOUNDS = {
    "float32 weights, autocast": (torch.float32, True, 72, 132, 330, 740),
    "bfloat16 weights": (torch.bfloat16, False, 62, 118, 240, 560),
}


@pytest.mark.parametrize("way", BOUNDS)
def test_operations_and_bytes_of_a_layer(way, one_kernel):
    "The difference between four layers and three."
    dtype, autocast, *bounds = BOUNDS[way]
    batch, found = make_batch(), []
    for layers in (3, 4):
        forward, backward = Operations(), Operations()
        with forward:
            loss = rewards_of(one_kernel[layers, dtype], batch, autocast)
        with backward:
            loss.backward()
        numbers = batch.input_ids.numel() * 64
        moved = [each.bytes.total() / numbers for each in (forward, backward)]
        found.append([forward.count.total(), backward.count.total(), *moved])
    layer = [b - a for a, b in zip(*found)]
    print(way, [round(n) for n in layer])
    assert all(0.5 * bound < n <= bound for n, bound in zip(layer, bounds)), layer


@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_kernels_of_a_compiled_layer(one_kernel):
    "Two kinds of layer are compiled, the last and the others; eager they would be 180 operations each."
    from torch._inductor import metrics

    torch._dynamo.reset()
    metrics.reset()
    model, batch = one_kernel[3, torch.bfloat16], make_batch()
    eager = rewards_of(model, batch)
    packing.compile_layers(model)
    loss = rewards_of(model, batch)
    loss.backward()
    print(metrics.generated_kernel_count, "kernels")
    assert metrics.generated_kernel_count <= 2 * 30
    assert abs(loss - eager) < 2**-6 * abs(eager)


def test_torch_compile_compiles_layers_and_nothing_else(tmp_path):
    "Same losses, same names of weights; transformers would compile the whole model."
    base, losses = make_base(tmp_path / "base"), {}
    for compiled in (False, True):
        args = RewardConfig(
            str(tmp_path / f"out{compiled}"), max_steps=4, logging_steps=1, save_strategy="no",
            show_plan=False, use_cpu=True, torch_compile=compiled, torch_compile_backend="aot_eager",
        )  # fmt: skip
        trainer = RewardTrainer(base, args, train_dataset=make_pairs(40))
        trainer.train()
        losses[compiled] = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        layers = trainer.model.model.layers
        assert [layer._compiled_call_impl is not None for layer in layers] == [compiled] * len(layers)
        assert trainer.model is trainer.model_wrapped and args.torch_compile is compiled
    assert losses[True] == pytest.approx(losses[False], abs=1e-5)
    trainer.save_model()
    assert RewardModel.from_pretrained(args.output_dir).score("a", "b") is not None


@pytest.mark.parametrize("way", ["separate", "LoRA"])
def test_compiled_layers_learn_the_same_by_ppo_and_are_compiled_once(tmp_path, monkeypatch, way):
    "Every batch has other lengths; what the first needed serves the others, and sampling compiles nothing."
    from torch._dynamo.utils import counters

    monkeypatch.setattr(packing, "_flash_fits", lambda *_: True)
    monkeypatch.setattr(packing, "varlen_attn", lambda *args, **_: varlen(*args))
    backend = {"LoRA": "eager"}.get(way, "aot_eager")  # which is slower
    monkeypatch.setattr(ppo, "compile_layers", partial(packing.compile_layers, backend=backend))
    base, results, graphs = make_base(tmp_path / "base"), [], []
    config = transformers.AutoConfig.from_pretrained(base)
    config.num_hidden_layers = 3
    more = {"critic": way}
    if way == "LoRA":
        more = {"peft_config": LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)}

    class Count(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            graphs.append(counters["stats"]["unique_graphs"])

    for compiled in (False, True):
        torch._dynamo.reset()
        counters.clear()
        torch.manual_seed(0)
        trainer = make_trainer(
            transformers.AutoModelForCausalLM.from_config(config), tmp_path / "out", total_episodes=24,
            processing_class=transformers.AutoTokenizer.from_pretrained(base), torch_compile=compiled,
            callbacks=[Count()], response_length=12, num_ppo_epochs=1, **more,
        )  # fmt: skip
        trainer.train()
        results.append(torch.cat([p.detach().flatten() for p in trainer.models.trained()]))
    eager, compiled = graphs[:3], graphs[3:]
    assert eager == [0] * 3 and 0 < compiled[0] == compiled[-1] and not counters["graph_break"]
    assert (results[1] - results[0]).abs().max() < 1e-6


@pytest.mark.parametrize("batches, asked, done", [(18, None, False), (19, None, True), (99, False, False)])
def test_layers_of_ppo_are_compiled_in_long_runs(tmp_path, monkeypatch, batches, asked, done):
    "From 300 passes of the policy on: here 4 passes over 4 micro-batches, in each batch."
    compiled = []
    monkeypatch.setattr(ppo, "compile_layers", lambda model, asked: compiled.append((model, asked)))
    trainer = make_trainer(
        make_base(tmp_path / "base"), tmp_path / "out", total_episodes=8 * batches, num_ppo_epochs=4,
        torch_compile=asked,
    )  # fmt: skip
    models = trainer.policy, trainer.ref_policy, trainer.critic.trunk
    assert compiled == ([(model, False) for model in models] if done else [])


# ---- memory


@pytest.mark.parametrize(
    "settings", [{}, {"layout": "padded"}, {"bf16": True}, {"batch_tokens": 80}], ids=str
)
def test_the_plan_counts_what_the_longest_batch_keeps(tmp_path, settings):
    args = RewardConfig(
        str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=3, use_cpu=True, report_to="none",
        show_plan=False, **settings,
    )  # fmt: skip
    trainer = RewardTrainer(make_base(tmp_path / "base"), args, train_dataset=make_pairs(64))
    planned, kept = trainer.plan().memory["activations"], []
    own = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    longest = sorted(range(64), key=lambda i: max(trainer.train_dataset["lengths"][i]))[-8:]
    batch = trainer._batch_of(longest)
    with trainer.accelerator.autocast():
        for part in batch.micro_batches(trainer.micro_batches.count, trainer.micro_batches.budget):
            found = {}
            size = lambda t: (t.untyped_storage().data_ptr(), t.untyped_storage().nbytes())
            keep = lambda t, found=found, size=size: found.update([size(t)]) or t
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                out = trainer.model(**part.model_inputs())  # alive while its tensors are counted
                kept.append(sum(size for at, size in found.items() if at not in own))
            del out
    print(settings, planned, max(kept))
    assert 0.9 * max(kept) < planned < 1.5 * max(kept)  # the longest example stands for all


MEMORY = [
    ("0.6B", "float32 weights, bf16 autocast", 8, False),
    ("0.6B", "float32 weights, bf16 autocast", 64, False),
    ("0.6B", "float32 weights, bf16 autocast", 64, True),
    ("4B", "bf16 weights, AdamW", 16, False),
    ("8B", "bf16 weights, AdamW", 16, True),
    ("8B", "LoRA of bf16 weights", 16, False),
    ("8B", "LoRA of bf16 weights", 16, True),
]


@pytest.mark.parametrize("size, way, pairs, recomputes", MEMORY)
def test_the_peak_of_a_step_is_known_within_a_tenth(monkeypatch, size, way, pairs, recomputes):
    "At the widths of real models, against the second step of a loop that knows nothing of the plan."
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    from memory_plan import step  # four layers stand for all

    found = step(size, way, pairs, recomputes, layers=4, vocabulary=16_384)
    assert found["tokens"] == 240 * pairs
    assert abs(found["planned"] / found["held"] - 1) < 0.1, found


def test_a_plan_that_could_not_count_says_nothing_of_activations_and_cuts_nothing(tmp_path, monkeypatch):
    args = RewardConfig(
        str(tmp_path / "out"), per_device_train_batch_size=2, gradient_accumulation_steps=4, use_cpu=True,
        report_to="none",
    )  # fmt: skip
    trainer = RewardTrainer(make_base(tmp_path / "base"), args, train_dataset=make_pairs(16))
    trainer.micro_batches.count = 4  # as on a GPU, where what was asked for is kept until it is known better

    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.model, "forward", fails)
    monkeypatch.setattr(trainer.micro_batches, "free_memory", lambda device: 2**30)
    plan = trainer.plan(timed=False)
    assert "activations" not in plan.memory and "activations" not in str(plan)
    assert trainer.micro_batches.count == 4 and not trainer.args.gradient_checkpointing


def test_dropping_the_last_batch_drops_what_does_not_fill_a_piece(tmp_path):
    "Fifteen pieces of four pairs make the one step that there is."
    args = RewardConfig(
        str(tmp_path / "out"), per_device_train_batch_size=4, gradient_accumulation_steps=16,
        dataloader_drop_last=True, num_train_epochs=1, use_cpu=True, report_to="none", save_strategy="no",
        show_plan=False,
    )  # fmt: skip
    trainer = RewardTrainer(make_base(tmp_path / "base"), args, train_dataset=make_pairs(60))
    trainer.train()
    assert trainer.state.global_step == 1 and not trainer.micro_batches.can_split


@pytest.mark.parametrize(
    "share, parts, recomputed", [(10, 1, False), (0.45, 3, False), (0.02, 8, True), (0.0, 8, True)]
)
def test_a_batch_is_cut_and_then_recomputed_as_the_memory_asks(
    tmp_path, monkeypatch, share, parts, recomputed
):
    "`share`: of what the longest batch keeps, how much a GPU would have room for."
    args = RewardConfig(
        str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=2, use_cpu=True,
        report_to="none", save_strategy="no", batch_tokens=10**6,
    )  # fmt: skip
    trainer = RewardTrainer(make_base(tmp_path / "base"), args, train_dataset=make_pairs(64))
    memory = trainer.plan().memory
    room = share * memory["activations"] + memory["gradients"] + memory["optimizer"]
    monkeypatch.setattr(trainer.micro_batches, "free_memory", lambda device: room / 0.9)
    trainer.train()
    assert (trainer.micro_batches.count, trainer.args.gradient_checkpointing) == (parts, recomputed)
    assert trainer.model.is_gradient_checkpointing is recomputed
    assert trainer.plan().memory["activations"] < memory["activations"] or share > 1


# ---- calls of the tokenizer


class Counting:
    "A tokenizer of the library tokenizers that counts how often it encodes."

    def __init__(self, backend):
        self.__dict__ |= {"backend": backend, "calls": 0}

    def __getattr__(self, name):
        found = getattr(self.backend, name)
        if not name.startswith("encode_batch"):
            assert name != "encode", "one text alone"
            return found

        def counted(texts, *args, **how):
            self.__dict__["calls"] += len(texts) > 0
            return found(texts, *args, **how)

        return counted

    def __setattr__(self, name, value):
        setattr(self.backend, name, value)


TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}"


@pytest.mark.parametrize("made, calls", [("by us", 2), ("with a template", 3), ("without", 3)])
def test_calls_of_the_tokenizer_do_not_grow_with_the_texts_of_a_chunk(tmp_path, monkeypatch, made, calls):
    "Every third text is too long, and its prompt is cut."
    model, tokenizer = load_reward_backbone(make_base(tmp_path / "base"), new_head=True)
    if made == "by us":
        RewardMetadata(encoding=prepare_tokenizer(tokenizer, model, max_length=128)).save(tmp_path)
    elif made == "with a template":
        tokenizer.chat_template = TEMPLATE
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    rm = RewardModel.from_pretrained(tmp_path, device="cpu")
    monkeypatch.setattr(rm.tokenizer, "_tokenizer", Counting(rm.tokenizer._tokenizer))
    pairs, found = make_pairs(80), []
    for texts, at_once in ((20, 20), (80, 80), (80, 20)):
        monkeypatch.setattr(text_scorer, "_AT_ONCE", at_once)
        rm.tokenizer._tokenizer.__dict__["calls"] = 0
        prompts = [pair["prompt"] * (1 if i % 3 else 99) for i, pair in enumerate(pairs[:texts])]
        rm.score(prompts, [pair["chosen"] for pair in pairs[:texts]])
        found.append(rm.tokenizer._tokenizer.calls)
    assert 0 < found[0] == found[1] <= calls and found[2] == 4 * found[1]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "conversations"])
@pytest.mark.parametrize("max_length, calls", [(128, 1), (40, 2)], ids=["whole", "cut"])
def test_texts_that_are_cut_are_encoded_together_once_more(tmp_path, monkeypatch, chat, max_length, calls):
    "What has to be cut is tokenised a second time, with the places of its tokens; never one by one."
    _, tokenizer = load_reward_backbone(make_base(tmp_path / "base"), new_head=True)
    encoder = RewardEncoder(tokenizer, prepare_tokenizer(tokenizer, max_length=max_length))
    monkeypatch.setattr(tokenizer, "_tokenizer", Counting(tokenizer._tokenizer))
    for n in (20, 80):
        pairs = make_pairs(n)
        prompts = [row["prompt"] * 2 for row in pairs]
        if chat:
            prompts = [[{"role": "user", "content": prompt}] for prompt in prompts]
        tokenizer._tokenizer.__dict__["calls"] = 0
        batch = encoder.encode(prompts, [row["chosen"] for row in pairs])
        assert tokenizer._tokenizer.calls == calls
        assert None in batch.ids or sum(batch.cut) > n / 2 or max_length > 40


@pytest.mark.parametrize("made", ["with a template", "without"])
def test_a_stranger_s_texts_are_encoded_together_as_one_by_one(tmp_path, made):
    "Full texts with and without a BOS of their own, pairs, messages, in one list."
    model, tokenizer = load_reward_backbone(make_base(tmp_path / "base"), new_head=True)
    tokenizer.chat_template = TEMPLATE if made == "with a template" else None
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    rm = RewardModel.from_pretrained(tmp_path, device="cpu")
    rows = [("the cat", None), ("<s>the cat sat", None), ("a mat?", "thank you"), ("<s>rain", "sorry")]
    rows += [([{"role": "user", "content": "cat"}], "so")] * bool(tokenizer.chat_template)
    together = rm.encoder.encode(*zip(*rows)).ids
    assert together == [rm.encoder.encode([prompt], [response]).ids[0] for prompt, response in rows]
    assert all(ids.count(tokenizer.bos_token_id) <= 1 for ids in together)
