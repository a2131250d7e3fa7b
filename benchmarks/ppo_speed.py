"""Episodes per second and peak memory of PPO: ours (separate and shared critic) beside TRL 1.12's, on the
same work.

    pip install --no-deps --target trl-1.12 trl==1.12.0
    python benchmarks/ppo_speed.py --trl-folder trl-1.12 --data hh-rlhf-harmless-test.jsonl.gz [--output
        benchmarks/results/ppo_speed.md]

The prompts are those of real transcripts at their natural lengths (longer ones than --longest
tokens are left out), the same in the same order for all. The policy is a Qwen3-shaped decoder of 33
million parameters with random weights, read by all from one folder, and so is the reward model.
Each process does one training step to warm up, then --steps whole steps that are timed, from the
end of a step to the end of the next. `local_rollout_forward_batch_size` is first tuned for each
side (--rollout-batches). Takes about half an hour on two cores.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from common import SHAPES, StepMeter, available_threads, build_tokenizer, peak_gib, run_worker
from trl_ppo import VERSION, in_order, peer_trainer, trl_folder, use_folder

SIDES = {
    "ours": "reward_kit, separate critic",
    "theirs": f"TRL {VERSION}",
    "shared": "reward_kit, shared critic",
}
PHASES = ("sample", "score", "reference", "values", "update")


def prepare(work: Path, data: str, n: int, longest: int, shape: str, vocabulary: int, seed: int = 0) -> None:
    "Tokenizer, prompts, policy and reward model, in one folder that all processes read."
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    from reward_kit.data.preferences import load_preferences
    from reward_kit.model.encoding import prepare_tokenizer
    from reward_kit.model.model_folder import RewardMetadata

    turns = {"user": "Human", "assistant": "Assistant"}
    write = lambda messages: "".join(f"\n\n{turns[m['role']]}: {m['content']}" for m in messages)
    rows = [row for row in load_preferences(data, progress=False) if not isinstance(row["prompt"], str)]
    tokenizer = build_tokenizer(
        [write(row["prompt"] + response) for row in rows for response in row["responses"]], vocabulary
    )
    texts = list(dict.fromkeys(write(row["prompt"]) + "\n\nAssistant:" for row in rows))
    prompts = [(text, ids) for text, ids in zip(texts, tokenizer(texts)["input_ids"]) if len(ids) <= longest]
    if len(prompts) < n:
        raise SystemExit(
            f"{n} prompts of at most {longest} tokens are needed, {data} has {len(prompts)}; fewer --steps do"
        )
    torch.manual_seed(seed)
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=SHAPES[shape]["hidden_size"] // SHAPES[shape]["num_attention_heads"],
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **SHAPES[shape],
        **special,
    )
    policy = Qwen3ForCausalLM(config)
    policy.save_pretrained(work / "policy")
    tokenizer.save_pretrained(work / "policy")
    config.num_labels = 1
    reward = Qwen3ForSequenceClassification(config)
    encoding = prepare_tokenizer(tokenizer, reward)
    reward.save_pretrained(work / "reward")
    tokenizer.save_pretrained(work / "reward")
    RewardMetadata(encoding=encoding).save(work / "reward")
    parameters, embeddings = (
        sum(p.numel() for p in policy.parameters()),
        policy.get_input_embeddings().weight.numel(),
    )
    facts = {
        "parameters": parameters,
        "without embeddings": parameters - embeddings,
        "vocabulary": len(tokenizer),
    }
    lengths = [len(ids) for _, ids in prompts[:n]]
    facts |= {
        "versions": RewardMetadata().versions,
        "prompts": n,
        "mean prompt": sum(lengths) / n,
        "longest prompt": max(lengths),
    }
    (work / "facts.json").write_text(json.dumps(facts))
    (work / "prompts.json").write_text(json.dumps(prompts[:n]))


class Meter(StepMeter):
    "What a run does: when each step ended, and how much work there was in it."

    def __init__(self):
        super().__init__()
        self.digests = []

    def watch(self, name: str, model) -> None:
        """Count the token positions that a model reads, padding included, and the rows its vocabulary
        projection computes."""
        import torch

        def read(module, args, output):
            self.now[f"{name}, {'with' if torch.is_grad_enabled() else 'without'} gradients"] += args[
                0
            ].numel()

        def project(module, args, output):
            self.now["rows of vocabulary logits"] += args[0][..., 0].numel()

        model.get_input_embeddings().register_forward_hook(read)
        projection = getattr(model, "get_output_embeddings", lambda: None)()
        if projection is not None:
            projection.register_forward_hook(project)

    def watch_optimizer(self, optimizer) -> None:
        "Count its steps."
        optimizer.register_step_post_hook(lambda *_: self.now.update({"optimizer steps": 1}))

    def episodes(self, prompts: list[list[int]], responses: list[list[int]]) -> None:
        "Count the episodes of a batch, and remember which prompts they are of."
        self.now.update(
            {
                "episodes": len(prompts),
                "prompt tokens": sum(map(len, prompts)),
                "response tokens": sum(map(len, responses)),
            }
        )
        self.digests.append(hashlib.sha256(json.dumps(sorted(prompts)).encode()).hexdigest()[:16])

    def result(self) -> dict:
        "Seconds and work of the steps after the first."
        timed = self.steps[1:]
        work = {name: sum(step[name] for step in timed) / len(timed) for name in sorted(set().union(*timed))}
        return {
            "seconds": [b - a for a, b in zip(self.ends, self.ends[1:])],
            "work": work,
            "digests": self.digests,
        }


def run_ours(work: Path, settings: dict, critic: str) -> dict:
    "Our trainer on the prompts."
    from reward_kit.model.settings import quiet
    from reward_kit.rl.ppo import PPOConfig, PPOTrainer

    started, meter = peak_gib(), Meter()
    texts = [text for text, _ in json.loads((work / "prompts.json").read_text())]
    args = PPOConfig(
        str(work / "out"),
        critic=critic,
        bf16=False,
        use_cpu=True,
        max_grad_norm=0,
        save_steps=0,
        num_sample_generations=0,
        disable_tqdm=True,
        **settings,
    )
    with quiet():
        trainer = PPOTrainer(
            str(work / "policy"), str(work / "reward"), args, texts, callbacks=[meter.callback()]
        )
    in_order(trainer)
    collect = trainer.collect

    def counted(step):
        episodes, metrics = collect(step)
        meter.episodes([e.prompt_ids for e in episodes], [e.response_ids for e in episodes])
        return episodes, metrics

    trainer.collect = counted
    meter.watch("policy", trainer.policy)
    meter.watch("reference", trainer.ref_policy)
    if trainer.critic.trunk is not None:
        meter.watch("critic", trainer.critic.trunk)
    meter.watch("reward model", trainer.rewards.functions[0].model)
    meter.watch_optimizer(trainer.optimizer)
    logs = trainer.train().log_history[1:]
    phases = {phase: sum(log.get(f"time/{phase}", 0.0) for log in logs) / len(logs) for phase in PHASES}
    return meter.result() | {"phases": phases, "imports_gib": started, "peak_gib": peak_gib()}


def run_theirs(work: Path, settings: dict, folder: Path) -> dict:
    "TRL's trainer on the prompts."
    use_folder(folder)
    from trl.experimental.ppo import ppo_trainer

    started, meter, sampling = peak_gib(), Meter(), []
    prompts = [ids for _, ids in json.loads((work / "prompts.json").read_text())]
    trainer = peer_trainer(
        work / "policy", work / "reward", prompts, settings, work / "out", [meter.callback()]
    )
    generate, tokenizer = ppo_trainer.batch_generation, trainer.processing_class

    def counted(model, queries, *rest):
        begin = perf_counter()
        found = generate(model, queries, *rest)
        sampling.append(perf_counter() - begin)
        asked = [[i for i in row if i != tokenizer.pad_token_id] for row in queries.tolist()]
        answers = found[0][:, queries.shape[1] :].tolist()
        meter.episodes(
            asked,
            [
                row[: row.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in row else row
                for row in answers
            ],
        )
        return found

    ppo_trainer.batch_generation = counted
    meter.watch("policy", trainer.policy_model)
    meter.watch("reference", trainer.ref_model)
    meter.watch("critic", trainer.value_model)
    meter.watch("reward model", trainer.reward_model)
    meter.watch_optimizer(trainer.optimizer.optimizer)
    trainer.train()
    return meter.result() | {
        "phases": {"sample": sum(sampling[1:]) / len(sampling[1:])},
        "imports_gib": started,
        "peak_gib": peak_gib(),
    }


def work_once(side: str, settings: dict, work: Path, trl: Path, threads: int) -> dict:
    "One side in a process of its own."
    import torch

    torch.set_num_threads(threads)
    return (
        run_theirs(work, settings, trl)
        if side == "theirs"
        else run_ours(work, settings, "shared" if side == "shared" else "separate")
    )


class Bench:
    "Processes one after another, and what they measured."

    def __init__(self, args, work: Path):
        self.args, self.work, self.count = args, work, 0
        self.rollout = {side: args.rollout_batches[0] for side in SIDES}

    def once(self, side: str, steps: int, rollout: int) -> dict:
        "One process: a step to warm up, and `steps` that are timed."
        a, self.count = self.args, self.count + 1
        settings = {
            "total_episodes": a.batch * (steps + 1),
            "per_device_train_batch_size": a.micro_batch,
            "gradient_accumulation_steps": a.batch // a.micro_batch,
            "num_mini_batches": 1,
            "num_ppo_epochs": a.epochs,
            "local_rollout_forward_batch_size": rollout,
            "response_length": a.response,
            "temperature": 1.0,
            "kl_coef": 0.05,
            "learning_rate": 3e-6,
            "adam_epsilon": 1e-5,
            "weight_decay": 0.0,
            "seed": 42,
        }
        given, answer = self.work / "settings.json", self.work / "answer.json"
        given.write_text(json.dumps(settings))
        answer.unlink(missing_ok=True)
        run_worker(
            __file__,
            ["--worker", side, "--work", self.work, "--trl-folder", a.trl_folder, "--threads", a.threads],
            a.threads,
            self.work / f"{self.count}-{side}.log",
        )
        result = json.loads(answer.read_text())
        result["speed"] = a.batch * len(result["seconds"]) / sum(result["seconds"])
        measured = f"{result['speed']:.3f} episodes/s, peak {result['peak_gib']:.2f} GiB"
        print(f"{SIDES[side]:28} rollout batch {rollout:3}: {measured}", flush=True)
        return result

    def tune(self) -> dict[str, dict[int, dict]]:
        "Each side with each rollout batch, one timed step; the fastest is what the rounds use."
        if len(self.args.rollout_batches) < 2:
            return {}
        print("Tuning local_rollout_forward_batch_size, one timed step each:", flush=True)
        found = {
            side: {size: self.once(side, 1, size) for size in self.args.rollout_batches} for side in SIDES
        }
        self.rollout = {side: max(own, key=lambda size: own[size]["speed"]) for side, own in found.items()}
        return found

    def rounds(self) -> dict[str, list[dict]]:
        """All sides in every round, each time in another order. RuntimeError where their prompts were
        not the same."""
        found, names = {side: [] for side in SIDES}, list(SIDES)
        for i in range(self.args.rounds):
            print(f"Round {i + 1} of {self.args.rounds}:", flush=True)
            for side in (names[i % 3 :] + names[: i % 3])[:: -1 if i % 2 else 1]:
                found[side].append(self.once(side, self.args.steps, self.rollout[side]))
        given = {tuple(run["digests"]) for runs in found.values() for run in runs}
        if len(given) != 1:
            raise RuntimeError("the sides were not given the same prompts")
        return found


def middle(runs: list[dict], *keys) -> float:
    "Median over runs of a number that lies under these keys."
    values = []
    for run in runs:
        for key in keys:
            run = run.get(key, 0.0)
        values.append(run)
    return median(values)


def speed_table(found: dict[str, list[dict]], rollout: dict) -> list[str]:
    "One row a side."
    lines = [
        (
            "| | episodes/s, median (each round) | of TRL's speed | peak memory, GiB (before models are read)"
            " | of TRL's memory | rollout batch |"
        ),
        "|---|---|---|---|---|---|",
    ]
    speed, memory = (
        {side: middle(runs, key) for side, runs in found.items()} for key in ("speed", "peak_gib")
    )
    for side, runs in found.items():
        each = ", ".join(f"{run['speed']:.3f}" for run in runs)
        lines.append(
            f"| {SIDES[side]} | {speed[side]:.3f} ({each}) | {speed[side] / speed['theirs']:.2f} |"
            f" {memory[side]:.2f} ({middle(runs, 'imports_gib'):.2f}) | {memory[side] / memory['theirs']:.0%}"
            f" | {rollout[side]} |"
        )
    return lines


def work_table(found: dict[str, list[dict]]) -> list[str]:
    "Seconds of phases, and counts, of one training step."
    sides = list(found)
    lines = [
        "| one training step | " + " | ".join(SIDES[side] for side in sides) + " |",
        "|---|" + "---|" * len(sides),
    ]
    for phase in PHASES:
        cells = [
            f"{middle(runs, 'phases', phase):.2f}" if phase in runs[0]["phases"] else ""
            for runs in found.values()
        ]
        lines.append(f"| seconds: {phase} | " + " | ".join(cells) + " |")
    whole = [median(second for run in runs for second in run["seconds"]) for runs in found.values()]
    lines.append("| seconds: whole step | " + " | ".join(f"{second:.2f}" for second in whole) + " |")
    names = dict.fromkeys(name for runs in found.values() for name in runs[0]["work"])
    first = ["episodes", "prompt tokens", "response tokens", "optimizer steps", "rows of vocabulary logits"]
    for name in first + sorted(set(names) - set(first)):
        label = f"token positions: {name}" if "gradients" in name else name
        lines.append(
            f"| {label} | "
            + " | ".join(f"{middle(runs, 'work', name):,.0f}" for runs in found.values())
            + " |"
        )
    return lines


def tuning_table(tuned: dict[str, dict[int, dict]]) -> list[str]:
    "Speed and memory with each rollout batch."
    if not tuned:
        return []
    sizes = list(next(iter(tuned.values())))
    lines = [
        "",
        "Tuning of `local_rollout_forward_batch_size`, one timed step each: episodes/s (peak GiB).",
        "",
        "| | " + " | ".join(map(str, sizes)) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    return lines + [
        f"| {SIDES[side]} | "
        + " | ".join(f"{run['speed']:.3f} ({run['peak_gib']:.2f})" for run in own.values())
        + " |"
        for side, own in tuned.items()
    ]


DIFFERENCES = """The same on all sides: prompts and their order, policy, reward model, response length,
temperature, KL coefficient (k1 estimator), PPO epochs, one optimizer step in an epoch,
micro-batch, AdamW with its rates, float32, no gradient checkpointing, nothing saved. The
policy is random: the chance of EOS is about one in the size of the vocabulary at each
token, so nearly all responses have full length (see response tokens). Peak memory is the
largest resident set of a process.

TRL runs at its best setting that does the same: stop_token='eos'; gradient checkpointing, bfloat16, sample
generations and saving off; prompts padded to the longest of a batch.

What differs:

- The reward model reads text on our side (decoded, encoded again with its own tokenizer, EOS added), the
policy's token ids on TRL's;
  random tokens are not always what their text encodes to, so the lengths differ a little.
- TRL pads a batch of rollouts to its longest prompt everywhere; we sort by length and pad to what is side by
side.
- TRL projects every position to the vocabulary, prompts and padding included, and keeps all hidden states; we
project what was sampled.
  It also collects garbage twice in a step.
- TRL also logs the entropy of the whole distribution in each micro-batch; ours is estimated from the sampled
tokens. We log gradient
  norms (clipping is off on both sides; TRL has none).
- TRL averages the loss over a micro-batch and then over micro-batches; we divide by the tokens of the
minibatch. With full lengths it
  is the same.
- TRL's score head has no bias, and where a response ends in EOS it gives the score one position later.
Sampling draws from other
  streams of chance."""


def report(args, facts: dict, tuned: dict, found: dict, rollout: dict) -> str:
    "All of it as Markdown."
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    size, inner = (f"{facts[name] / 1e6:.1f}M" for name in ("parameters", "without embeddings"))
    say = [
        (
            f"PPO on {facts['prompts']} prompts of real transcripts ({facts['mean prompt']:.0f} tokens on"
            f" average, at most {facts['longest prompt']}), {args.response} response tokens, batches of"
            f" {args.batch} episodes, micro-batches of {args.micro_batch}, {args.epochs} PPO epochs. Policy"
            f" and reward model: {size} parameters each ({inner} without embeddings, vocabulary"
            f" {facts['vocabulary']:,}). Rounds of alternating processes: {args.rounds}; in each process a"
            f" step to warm up and {args.steps} timed ({args.batch * args.steps} episodes)."
        ),
        "",
        f"CPU, {args.threads} threads, float32; {versions}; TRL's trainer: {VERSION}.",
        "",
    ]
    return "\n".join(
        [*say, *speed_table(found, rollout), "", *work_table(found), *tuning_table(tuned), "", DIFFERENCES]
    )


def arguments():
    "Of the command; those of the processes it starts are not shown."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trl-folder",
        type=trl_folder,
        required=True,
        help=f"where trl=={VERSION} is, installed with --no-deps --target",
    )
    parser.add_argument("--data", help="transcripts of preferences, e.g. the HH-RLHF harmless test file")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="timed training steps in a process")
    parser.add_argument("--batch", type=int, default=32, help="episodes in a training step")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=2, help="PPO epochs")
    parser.add_argument("--response", type=int, default=48, help="response tokens")
    parser.add_argument("--longest", type=int, default=128, help="prompts with more tokens are left out")
    parser.add_argument(
        "--rollout-batches",
        type=int,
        nargs="+",
        default=[8, 16, 32],
        help="values tried for each side; one: no tuning",
    )
    parser.add_argument("--shape", choices=SHAPES, default="33m", help="'tiny' is for trying the command out")
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--worker", choices=[*SIDES, "prepare"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--prompts", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None and not args.data:
        parser.error("--data is missing: the file of transcripts")
    if args.batch % args.micro_batch:
        parser.error(f"--micro-batch {args.micro_batch} must divide --batch {args.batch}")
    return args


def main(args) -> None:
    """Prepare, tune, measure, report. This process stays small: a child's peak memory may begin with
    its parent's."""
    work = Path(tempfile.mkdtemp(prefix="ppo-speed-"))
    try:
        # One batch more than is used: in the last batch of a pass over the data TRL takes an optimizer step
        # at each micro-batch.
        n = args.batch * (args.steps + 2)
        call = [
            "--worker",
            "prepare",
            "--work",
            work,
            "--trl-folder",
            args.trl_folder,
            "--data",
            args.data,
            "--prompts",
            n,
        ]
        call += ["--longest", args.longest, "--shape", args.shape, "--vocabulary", args.vocabulary]
        run_worker(__file__, call, args.threads, work / "0.log")
        bench = Bench(args, work)
        tuned = bench.tune()
        found = bench.rounds()
        text = report(args, json.loads((work / "facts.json").read_text()), tuned, found, bench.rollout)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"\n{text}")
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    elif args.worker == "prepare":
        prepare(args.work, args.data, args.prompts, args.longest, args.shape, args.vocabulary)
    else:
        answer = work_once(
            args.worker,
            json.loads((args.work / "settings.json").read_text()),
            args.work,
            args.trl_folder,
            args.threads,
        )
        (args.work / "answer.json").write_text(json.dumps(answer))
