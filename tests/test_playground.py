"""The playground: tables that can be read back, a reward defined for any text, labels that follow it, a
base that speaks the world."""

import itertools
import json
import math
import random
import string
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import reward_kit.data.playground as playground
from reward_kit.data.playground import _FACTS as FACTS
from reward_kit.data.playground import _WORLD as WORLD
from reward_kit.data.playground import Playground
from reward_kit.data.playground import _Mix as Mix
from reward_kit.data.playground import _reward_parts as reward_parts

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import build_playground as building  # noqa: E402

CHATTER, PADDING, PHRASINGS, POLITE, RUDE = (
    WORLD[name] for name in ("chatter", "padding", "phrasings", "polite", "rude")
)

true_reward = Playground.true_reward

QUESTION = "What do bees make from nectar?"
RIGHT = "Bees turn the nectar of flowers into honey."
WRONG = "Bees turn the nectar of flowers into silk."
RELATED = "The queen lays the eggs of the whole colony."
ELSEWHERE = "Whales come up to the surface and breathe with lungs."


def reward(response, prompt=QUESTION):
    return true_reward([prompt], [response])[0]


# --- tables


def test_tables_are_consistent():
    sentences = [sentence for fact in FACTS for sentence in (fact.right, *fact.wrong)] + [
        *POLITE,
        *RUDE,
        *PADDING,
        *CHATTER,
    ]
    assert len(set(map(playground._normalise, sentences))) == len(sentences)
    for sentence in sentences:
        assert sentence.endswith(".") and not any(mark in sentence[:-1] for mark in ".!?*"), sentence
    assert len({fact.topic for fact in FACTS}) >= 36
    assert all(len(fact.wrong) == 2 and fact.question.endswith("?") for fact in FACTS)


def test_no_question_stands_inside_another():
    questions = [fact.question.lower() for fact in FACTS]
    assert not [(a, b) for a, b in itertools.permutations(questions, 2) if a in b]


def test_every_prompt_is_read_as_its_fact():
    for fact, phrasing in itertools.product(FACTS, PHRASINGS):
        assert playground._find_fact(fact.ask(phrasing)) == fact


def test_the_last_question_of_a_prompt_is_the_one_asked():
    assert playground._find_fact(f"{FACTS[5].question} And then: {QUESTION}") == FACTS[0]
    assert playground._find_fact("What is the meaning of life?") is None


def test_a_composed_answer_holds_nothing_unknown():
    rng = random.Random(3)
    for mix in (Mix.LABELLED, Mix.WRITTEN):
        for _ in range(1500):
            fact = rng.choice(FACTS)
            text = fact.compose(rng, mix)
            assert "unknown" not in reward_parts(fact.question, text), text


def test_compose_follows_its_mix():
    rng, n = random.Random(4), 4000
    counts = Counter()
    for _ in range(n):
        counts.update(reward_parts(QUESTION, FACTS[0].compose(rng)).keys())
    assert abs(counts["cut"] / n - Mix.LABELLED.cut) < 0.03
    assert (
        abs(counts["rude"] / n - Mix.LABELLED.rude * (1 - Mix.LABELLED.cut / 2)) < 0.03
    )  # half of the tones stand after the cut
    assert counts["right"] > counts["wrong"] > counts["off_topic"] > 0.1 * n


# --- the reward


@pytest.mark.parametrize(
    "response, expected",
    [
        (RIGHT, 2.0),
        (f"{RIGHT} {RELATED}", 2.5),
        (f"{RIGHT} Thank you for asking.", 2.8),
        (f"{RIGHT} {RELATED} Thank you for asking.", 3.3),
        (WRONG, -1.2),
        (f"{RIGHT} {WRONG}", 0.8),
        (ELSEWHERE, -0.8),
        (CHATTER[0], -0.8),
        (" ".join([ELSEWHERE, *CHATTER[:3]]), -1.6),
        (RELATED, 0.5),
        ("Bees turn the nectar", -1.2),
        (RIGHT[:-1], -1.2),
        (f"What a silly question. {RIGHT}", 0.4),
        (f"{RIGHT} {PADDING[0]}", 1.4),
        (f"{RIGHT} {RIGHT}", 1.4),
        (f"{RIGHT} {POLITE[0]} {POLITE[1]}", 2.2),
        ("The cat sat on the mat.", -1.0),
        ("the cat sat on", -2.2),
        ("", -4.0),
        ("   \n ", -4.0),
        ("?!", -1.0 * 4),
        (" ".join(f"Word {i}." for i in range(50)), -4.0),
    ],
)
def test_reward_by_hand(response, expected):
    assert reward(response) == pytest.approx(expected)


def test_bounds_are_as_documented():
    best = sum(weight for weight in playground._WEIGHTS.values() if weight > 0)
    worst = sum(
        playground._WEIGHTS[part] * limit
        for part, limit in playground._LIMITS.items()
        if playground._WEIGHTS[part] < 0
    )
    assert best == pytest.approx(3.3) and worst == pytest.approx(-13.2)


def test_any_text_has_a_finite_reward():
    rng = random.Random(0)
    alphabet = string.printable + "äß你🐝\u0000\u200b\ufffd"
    for _ in range(300):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 300)))
        assert -13.2 <= reward(text) <= -1.0, text
    assert -13.2 <= reward("a" * 200_000) <= -1.0


def test_reward_ignores_case_white_space_and_order():
    rng = random.Random(1)
    for _ in range(200):
        fact = rng.choice(FACTS)
        text = fact.compose(rng)
        value = reward(text, fact.question)
        assert reward(text.upper().replace(" ", " \n\t "), fact.question.upper()) == value
        if text.endswith("."):
            sentences = text[:-1].split(". ")
            rng.shuffle(sentences)
            assert reward(". ".join(sentences) + ".", fact.question) == value


def test_saying_it_again_or_padding_never_pays():
    rng = random.Random(2)
    for _ in range(300):
        fact = rng.choice(FACTS)
        text = fact.compose(rng)
        if not text.endswith("."):
            continue
        value = reward(text, fact.question)
        again = text.split(". ")[0].rstrip(".") + "."
        for addition in (again, rng.choice(PADDING), text, "Blah."):
            assert reward(f"{text} {addition}", fact.question) <= value


def test_conversations_read_as_their_last_message():
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}]
    assert true_reward([prompt], [[{"role": "assistant", "content": RIGHT}]]) == [2.0]


def test_unknown_prompt_has_no_right_answer():
    assert reward(RIGHT, "Tell me a joke.") == pytest.approx(-0.8)


@pytest.mark.parametrize("arguments", [("a", ["b"]), (["a"], "b"), (["a", "b"], ["c"])])
def test_lengths_must_agree(arguments):
    with pytest.raises(ValueError, match="two lists of the same length"):
        true_reward(*arguments)


# --- labels


def rows(preferences):
    return [(row["prompt"], *row["responses"], *row["ranks"]) for row in preferences]


def test_preferences_are_seeded_distinct_and_named():
    world = Playground(seed=0)
    first = world.preferences(300)
    world.rankings(5)
    assert rows(first) == rows(world.preferences(300)) == rows(Playground(seed=0).preferences(300))
    assert rows(first) != rows(world.preferences(300, seed=1)) != rows(Playground(seed=2).preferences(300))
    assert (
        rows(world.preferences(300, seed=1)) == rows(Playground(seed=1).preferences(300))
        or world.prompts() != Playground(seed=1).prompts()
    )
    assert (
        first.kind == "text" and first[7]["origin"] == "playground:7" and first[7]["source"] == "playground"
    )
    assert len({(row["prompt"], frozenset(row["responses"])) for row in first}) == 300


def test_default_size_survives_the_loader():
    preferences = Playground().preferences()
    assert len(preferences) == 2400 and len({row["prompt"] for row in preferences}) >= 200
    longer = [len(row["responses"][0]) > len(row["responses"][1]) for row in preferences]
    assert 0.45 < sum(longer) / len(longer) < 0.55


def test_plackett_luce_against_all_orders():
    rewards, n, rng = [1.0, 0.0, -0.5], 30_000, random.Random(0)
    counts = Counter(tuple(playground._draw_ranking(rng, rewards)[0]) for _ in range(n))
    for order in itertools.permutations(range(3)):
        exact, rest = 1.0, list(order)
        while rest:
            exact *= math.exp(rewards[rest[0]]) / sum(math.exp(rewards[i]) for i in rest)
            rest.pop(0)
        assert abs(counts[order] / n - exact) < 4 * math.sqrt(exact * (1 - exact) / n)


def test_ties_only_where_asked_for():
    world = Playground(seed=0)
    assert all(row["ranks"] == [1, 2] for row in world.preferences(200))
    ranks = Counter(tuple(row["ranks"]) for row in world.ties(400, tie=1.0))
    assert set(ranks) == {(1, 1), (1, 2)}


def test_no_reward_beats_the_best_accuracy():
    world = Playground(seed=0)
    preferences = world.preferences(300)
    best, rng = world.best_accuracy(preferences), random.Random(0)
    for _ in range(20):
        assert world.expected_accuracy(preferences, [(rng.random(), rng.random()) for _ in range(300)]) < best
    assert world.expected_accuracy(preferences, [(0.0, 0.0)] * 300) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="300 pairs, got 2"):
        world.expected_accuracy(preferences, [(0, 1)] * 2)
    with pytest.raises(ValueError, match="no pairs"):
        world.best_accuracy([])
    with pytest.raises(ValueError, match="row 0 is not a pair"):
        world.best_accuracy(world.ties(400, tie=50.0))


def test_a_foreign_prompt_has_no_answers():
    with pytest.raises(ValueError, match="asks for no fact"):
        playground._sample_responses(random.Random(0), "Tell me a joke.", 2)


# --- the base


@pytest.fixture(scope="module")
def base():
    return playground.load_base()


def test_base_is_small_and_computes_in_float32(base):
    import torch
    from transformers import AutoModelForCausalLM

    model, tokenizer = base
    folder = playground.playground_base()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20
    assert 1_500_000 < model.num_parameters() < 2_500_000 and model.config.max_position_embeddings == 2048
    assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(folder).parameters()} == {torch.float32}
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert (
        model.config.eos_token_id == tokenizer.eos_token_id
        and model.config.pad_token_id == tokenizer.pad_token_id
    )
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())


def test_tokenizer_keeps_any_text(base):
    tokenizer, rng = base[1], random.Random(0)
    for _ in range(100):
        text = "".join(
            chr(
                rng.choice(
                    [rng.randrange(32, 127), rng.randrange(160, 0xD7FF), rng.randrange(0x10000, 0x1F9FF)]
                )
            )
            for _ in range(20)
        )
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    ids = tokenizer(QUESTION)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


def test_chat_template(base):
    tokenizer = base[1]
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
    ]
    assert (
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        == "<|bos|><|user|>Hi<|assistant|>Yes?<|eos|><|user|>Bye<|assistant|>"
    )
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_generation_is_the_same_alone_and_in_a_batch(base):
    model, tokenizer = base
    prompts = [fact.question for fact in FACTS[:6]]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    batch = tokenizer.batch_decode(
        model.generate(**inputs, do_sample=False, max_new_tokens=40), skip_special_tokens=True
    )
    alone = [
        tokenizer.decode(
            model.generate(**tokenizer(text, return_tensors="pt"), do_sample=False, max_new_tokens=40)[0],
            skip_special_tokens=True,
        )
        for text in prompts
    ]
    assert batch == alone
    assert (
        sum("right" in reward_parts(prompt, text[len(prompt) :]) for prompt, text in zip(prompts, batch)) >= 4
    )


def test_base_holds_what_a_reader_notices(base):
    """A linear reward on the frozen last state, fitted to noisy labels, comes near the best reachable
    on new prompts; on an untrained twin it does not."""
    import torch
    from transformers import LlamaForCausalLM

    trained, tokenizer = base
    torch.manual_seed(0)
    untrained = LlamaForCausalLM(trained.config).eval()
    world = Playground(seed=0)
    train, test = world.preferences(1200), world.preferences(400, seed=1)
    unseen = set(world.prompts()) - {row["prompt"] for row in train}
    test = [row for row in test if row["prompt"] in unseen]
    assert len(test) > 100

    def states(model, texts):
        with torch.no_grad():
            inputs = tokenizer(
                [text + tokenizer.eos_token for text in texts],
                return_tensors="pt",
                padding=True,
                padding_side="left",
            )
            return torch.cat(
                [
                    model.model(input_ids=i, attention_mask=m).last_hidden_state[:, -1]
                    for i, m in zip(inputs["input_ids"].split(64), inputs["attention_mask"].split(64))
                ]
            )

    def difference(model, pairs):
        chosen, rejected = ([f"{row['prompt']} {row['responses'][k]}" for row in pairs] for k in (0, 1))
        return states(model, chosen) - states(model, rejected)

    def accuracy(model):
        x, w = difference(model, train), torch.zeros(model.config.hidden_size, requires_grad=True)
        optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            value = -torch.nn.functional.logsigmoid(x @ w).mean() + 0.01 * w.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        return world.expected_accuracy(
            test, [(score, 0.0) for score in (difference(model, test) @ w).tolist()]
        )

    found = accuracy(trained), accuracy(untrained)
    best = world.best_accuracy(test)
    assert found[0] > best - 0.05 and found[1] < best - 0.08, (found, best)


def test_remarks_weigh_most_in_the_loss(base):
    tokenizer = base[1]
    document = building.Document(QUESTION, WRONG, "Wrong.", chat=True)
    tokens = building.document_tokens(document, tokenizer)
    text = tokenizer.decode([token for token, _ in tokens])
    assert text == f"<|bos|><|user|>{QUESTION}<|assistant|>{WRONG}<|eos|> Wrong.<|eos|>"
    first = [token for token, weight in tokens if weight == building.REMARK_WEIGHT]
    assert (
        len(first) == 1
        and tokenizer.decode(first).strip()
        and "Wrong".startswith(tokenizer.decode(first).strip())
    )


def test_batches_hold_every_document_once():
    rng = random.Random(0)
    sequences = [[(i, 1.0)] * rng.randint(3, 40) for i in range(200)]
    batches = building.group_documents(sequences, 8, random.Random(1), pad=(-1, 0.0))
    assert all(len({len(row) for row in batch}) == 1 for batch in batches)
    held = [[token for token in row if token != (-1, 0.0)] for batch in batches for row in batch]
    assert sorted(held) == sorted(sequences)
    assert all(
        len(row) == 64 and row[0] == sequence[0]
        for row, sequence in zip(building.pack_rows(sequences, 64)[:1], sequences)
    )


def test_build_base_is_reproducible(tmp_path):
    import torch

    lines = []
    torch.manual_seed(0)
    one = building.build_base(tmp_path / "one", seed=3, steps=2, log=lines.append)
    torch.manual_seed(1)
    two = building.build_base(tmp_path / "two", seed=3, steps=2, log=lines.append)
    assert {path.name for path in one.iterdir()} == {
        path.name for path in playground.playground_base().iterdir()
    }
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert json.loads((one / "config.json").read_text())["dtype"] == "float32"
    assert lines and all("loss" in line for line in lines)
    model, tokenizer = playground.load_base(one)
    assert model(**tokenizer("Bees", return_tensors="pt")).logits.shape[-1] == len(tokenizer)


def test_missing_base_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(playground, "files", lambda package: tmp_path)
    with pytest.raises(FileNotFoundError, match="python scripts/build_playground.py"):
        playground.playground_base()


def test_rebuild_command_has_help():
    result = subprocess.run(
        [sys.executable, SCRIPTS / "build_playground.py", "--help"], capture_output=True, text=True
    )
    assert result.returncode == 0 and "--out" in result.stdout and "--seed" in result.stdout


def test_the_world_is_in_the_built_package():
    "The facts are data, and a wheel without them could not draw anything."
    root = SCRIPTS.parent
    assert (
        "data/*.json" in (root / "setup.py").read_text()
        and "reward_kit/data/*.json" in (root / "MANIFEST.in").read_text()
    )
