"""Learning curves of PPO on the playground, where the true reward is known: ours beside TRL 1.12's, over
seeds.

    pip install --no-deps --target trl-1.12 trl==1.12.0
    python benchmarks/ppo_curves.py --trl-folder trl-1.12 [--reward REWARD_MODEL] [--output
        benchmarks/results/ppo_curves.md]

Both begin with the playground's base and a critic of their own that is a copy of it with a head of
zeros, learn from one reward model (--reward, or trained here on 2,400 pairs), and see the same
prompts in the same order with the same settings. Before the run, every few steps and after it one
function samples responses to prompts held out from the run and gives their true reward. A picture
goes beside
--output, as .png. Takes about 15 minutes on two cores.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import mean
from time import perf_counter

from common import T_975, available_threads, interval, run_worker, shown
from trl_ppo import VERSION, in_order, peer_trainer, trl_folder, use_folder

SIDES = {"ours": "reward_kit", "theirs": f"TRL {VERSION}"}
COLOURS = {"ours": "#0072B2", "theirs": "#D55E00"}


def train_reward(folder: Path, pairs: int) -> None:
    "The reward model that both learn from."
    from reward_kit.data.playground import Playground
    from reward_kit.tools.pipeline import train_reward_model

    train_reward_model("playground", Playground(0).preferences(pairs), folder, progress=False)


def held_out_reward(policy, tokenizer, prompts: list[str], length: int, seed: int) -> dict:
    """One sampled response to each prompt, by transformers' own generation for both sides: mean true
    reward, share that ends, mean length."""
    import torch
    from transformers import GenerationConfig

    from reward_kit.data.playground import Playground

    ids = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    how = GenerationConfig(
        max_new_tokens=length,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    training = policy.training
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        rows = policy.eval().generate(
            input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], generation_config=how
        )
    policy.train(training)
    written = rows[:, ids["input_ids"].shape[1] :]
    rewards = Playground.true_reward(
        prompts, [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
    )
    ended = (written == tokenizer.eos_token_id).any(1).float().mean().item()
    length = (written != tokenizer.pad_token_id).sum(1).float().mean().item()
    return {"reward": mean(rewards), "ended": ended, "length": length}


class Curve:
    "True reward against training steps, and the seconds that training took without it."

    def __init__(self, tokenizer, prompts: list[str], length: int, every: int, last: int):
        self.tokenizer, self.prompts, self.length, self.every, self.last = (
            tokenizer,
            prompts,
            length,
            every,
            last,
        )
        self.points, self.spent = [], 0.0

    def measure(self, policy, step: int) -> None:
        "A point of the curve."
        begin = perf_counter()
        self.points.append(
            {"step": step} | held_out_reward(policy, self.tokenizer, self.prompts, self.length, 1000 + step)
        )
        self.spent += perf_counter() - begin

    def callback(self):
        "One that measures every few steps, on both sides."
        from transformers import TrainerCallback

        curve = self

        class Measures(TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, **kwargs):
                curve.measure(getattr(model, "policy", model), 0)

            def on_step_end(self, args, state, control, model=None, **kwargs):
                due = state.global_step % curve.every == 0 or state.global_step == curve.last
                if due:
                    curve.measure(getattr(model, "policy", model), state.global_step)

        return Measures()


def one_run(side: str, given: dict, trl: Path, out: Path) -> dict:
    "A whole run of one side with one seed."
    if side == "theirs":
        use_folder(trl)
    import torch

    from reward_kit.data.playground import Playground, load_base, playground_base

    torch.set_num_threads(given["threads"])
    settings, (_, tokenizer) = dict(given["settings"]), load_base()
    prompts = Playground(settings["seed"]).prompts()
    held_out = sorted(prompts)[:: len(prompts) // given["held_out"]][
        : given["held_out"]
    ]  # the same for all seeds, and never trained on
    train = [prompt for prompt in prompts if prompt not in set(held_out)]
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    order = [
        train[i % len(train)] for i in range(settings["total_episodes"] + batch)
    ]  # and a batch that never comes: see ppo_speed.py
    curve = Curve(
        tokenizer, held_out, settings["response_length"], given["every"], settings["total_episodes"] // batch
    )
    if side == "ours":
        from reward_kit.rl.ppo import PPOConfig, PPOTrainer

        args = PPOConfig(
            str(out),
            critic="separate",
            bf16=False,
            use_cpu=True,
            max_grad_norm=0,
            normalize_reward=False,
            save_steps=0,
            num_sample_generations=0,
            disable_tqdm=True,
            **settings,
        )
        trainer = PPOTrainer(
            str(playground_base()), given["reward"], args, order, callbacks=[curve.callback()]
        )
        in_order(trainer)
    else:
        trainer = peer_trainer(
            playground_base(),
            given["reward"],
            tokenizer(order)["input_ids"],
            settings,
            out,
            [curve.callback()],
        )
    optimizer, steps = getattr(trainer.optimizer, "optimizer", trainer.optimizer), []
    optimizer.register_step_post_hook(lambda *_: steps.append(1))
    begin = perf_counter()
    trainer.train()
    logs = [log for log in trainer.state.log_history if "objective/kl" in log]
    last = {name: mean(log[f"objective/{name}"] for log in logs[-5:]) for name in ("scores", "kl")}
    seconds = perf_counter() - begin - curve.spent
    return {
        "points": curve.points,
        "seconds": seconds,
        "optimizer steps": len(steps),
        "first score": logs[0]["objective/scores"],
        **last,
    }


def picture(runs: dict[str, list[dict]], batch: int, path: Path) -> None:
    "Both curves: mean, interval, and each seed."
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(figsize=(6.0, 3.4), dpi=100, layout="constrained")
    for (side, own), mark, line in zip(runs.items(), "os", ("-", "--")):
        episodes = [point["step"] * batch for point in own[0]["points"]]
        seeds = [[point["reward"] for point in run["points"]] for run in own]
        centres, halves = zip(*(interval(list(column)) for column in zip(*seeds)))
        for seed in seeds:
            axes.plot(episodes, seed, color=COLOURS[side], linewidth=0.6, alpha=0.5, linestyle=line)
        axes.plot(
            episodes,
            centres,
            color=COLOURS[side],
            linewidth=2,
            linestyle=line,
            marker=mark,
            markersize=4,
            label=SIDES[side],
        )
        if len(own) > 1:
            axes.fill_between(
                episodes,
                [c - h for c, h in zip(centres, halves)],
                [c + h for c, h in zip(centres, halves)],
                color=COLOURS[side],
                alpha=0.13,
                linewidth=0,
            )
    axes.set_xlabel("episodes trained on")
    axes.set_ylabel("true reward of held-out prompts")
    axes.set_title(
        f"PPO on the playground: mean of {len(own)} seeds, each seed thin,\nband: 95% interval of the mean",
        fontsize=10,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    with Image.open(path) as image:
        image.quantize(64).save(path, optimize=True)  # a third of the size


def report(args, runs: dict[str, list[dict]], settings: dict, versions: dict) -> str:
    "Table of the curves, of the ends, and what it rests on."
    steps, first = [point["step"] for point in runs["ours"][0]["points"]], runs["ours"][0]["points"][0]
    at = lambda run, i: run["points"][i]["reward"]
    n, named = len(args.seeds), ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        (
            f"PPO from the playground's base with a separate critic, {n} seeds; mean and 95% interval"
            f" (Student's t over seeds) of the true reward of one sampled response to each of {args.held_out}"
            " prompts that are not trained on."
        ),
        "",
        "| episodes | " + " | ".join(SIDES[side] for side in runs) + " | reward_kit minus TRL, by seed |",
        "|---|" + "---|" * (len(runs) + 1),
    ]
    for i, step in enumerate(steps):
        gap = [at(a, i) - at(b, i) for a, b in zip(runs["ours"], runs["theirs"])]
        cells = [shown([at(run, i) for run in own]) for own in runs.values()]
        lines.append(f"| {step * args.batch} | " + " | ".join([*cells, shown(gap)]) + " |")
    whole = {
        side: [mean(at(run, i) for i in range(1, len(steps))) for run in own] for side, own in runs.items()
    }
    lines.append(
        "| mean of the curve | "
        + " | ".join(map(shown, whole.values()))
        + f" | {shown([a - b for a, b in zip(whole['ours'], whole['theirs'])])} |"
    )
    lines += [
        "",
        "| at the end | " + " | ".join(SIDES[side] for side in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    for name, get in (
        ("true reward, each seed", None),
        ("rise of the true reward", lambda run: at(run, -1) - at(run, 0)),
        ("reward model's score, last 5 batches", lambda run: run["scores"]),
        ("KL to the base, nats a response, last 5 batches", lambda run: run["kl"]),
        ("held-out responses that end, %", lambda run: 100 * run["points"][-1]["ended"]),
        ("held-out response length, tokens", lambda run: run["points"][-1]["length"]),
        ("optimizer steps", None),
        ("training, s (without measuring)", lambda run: run["seconds"]),
    ):
        if name == "optimizer steps":
            cells = [", ".join(str(run[name]) for run in own) for own in runs.values()]
        elif get is None:
            cells = [", ".join(f"{at(run, -1):.2f}" for run in own) for own in runs.values()]
        else:
            cells = [
                shown([get(run) for run in own]) if n > 1 else f"{get(own[0]):.2f}" for own in runs.values()
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    same = ", ".join(f"{name} {value}" for name, value in settings.items() if name != "seed")
    lines += [
        "",
        (
            f"Before training the base has {first['reward']:.2f} (the same for both: same weights, prompts"
            f" and random numbers). The same for both: {same}; no gradient clipping, scores as the reward"
            " model gives them."
        ),
        "",
        (
            "What differs: the reward model reads text with EOS on our side, the policy's ids on TRL's (the"
            " same where the response ended); TRL gives the score of an ended response one position after its"
            " EOS and also trains the critic there; TRL averages the loss within a micro-batch first, so that"
            " a token of a micro-batch with short responses weighs more; our critic's head has a bias;"
            " sampling draws from other streams of chance."
        ),
        "",
        f"CPU, {args.threads} threads, float32; {named}; TRL's trainer: {VERSION}.",
    ]
    return "\n".join(lines)


def arguments():
    "Of the command; those of the processes it starts are not shown."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--trl-folder",
        type=trl_folder,
        required=True,
        help=f"where trl=={VERSION} is, installed with --no-deps --target",
    )
    parser.add_argument("--reward", type=Path, help="a playground reward model; default: trained here")
    parser.add_argument(
        "--pairs",
        type=int,
        default=2400,
        help="that the reward model is trained on, where it is trained here",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40, help="batches of rollouts")
    parser.add_argument("--every", type=int, default=8, help="steps between points of the curve")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=4, help="PPO epochs, one optimizer step each")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of policy and critic")
    parser.add_argument("--response", type=int, default=64, help="response tokens")
    parser.add_argument(
        "--held-out", type=int, default=128, help="prompts that the true reward is measured on"
    )
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--output", type=Path, help="Markdown file; the picture goes beside it")
    parser.add_argument("--worker", choices=[*SIDES, "reward"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.batch % args.micro_batch:
        parser.error(f"--micro-batch {args.micro_batch} must divide --batch {args.batch}")
    if not 1 <= len(args.seeds) <= max(T_975):
        parser.error(f"--seeds takes 1 to {max(T_975)} seeds")
    return args


def main(args) -> None:
    "Both sides with each seed, in processes of their own, in alternating order."
    work = Path(tempfile.mkdtemp(prefix="ppo-curves-"))
    shared, started = ["--work", work, "--trl-folder", args.trl_folder, "--pairs", args.pairs], perf_counter()
    call = lambda side: [__file__, ["--worker", side, *shared], args.threads]
    try:
        if args.reward is None:
            run_worker(*call("reward"), work / "reward.log")
        settings = {
            "total_episodes": args.batch * args.steps,
            "per_device_train_batch_size": args.micro_batch,
            "gradient_accumulation_steps": args.batch // args.micro_batch,
            "num_mini_batches": 1,
            "num_ppo_epochs": args.epochs,
            "local_rollout_forward_batch_size": args.batch,
            "response_length": args.response,
            "temperature": 1.0,
            "kl_coef": 0.05,
            "vf_coef": 0.5,
            "learning_rate": args.learning_rate,
            "adam_epsilon": 1e-5,
            "weight_decay": 0.0,
            "missing_eos_penalty": 1.0,
        }
        runs = {side: [] for side in SIDES}
        for i, seed in enumerate(args.seeds):
            for side in list(SIDES)[:: -1 if i % 2 else 1]:
                given = {
                    "settings": settings | {"seed": seed},
                    "threads": args.threads,
                    "held_out": args.held_out,
                    "every": args.every,
                    "reward": str((args.reward or work / "rm").resolve()),
                }
                (work / "given.json").write_text(json.dumps(given))
                run_worker(*call(side), work / f"{seed}-{side}.log")
                runs[side].append(json.loads((work / "answer.json").read_text()))
                print(
                    f"seed {seed}, {SIDES[side]:12}: true reward "
                    + " ".join(f"{p['reward']:.2f}" for p in runs[side][-1]["points"])
                    + f"  ({runs[side][-1]['seconds']:.0f} s, {perf_counter() - started:.0f} s so far)",
                    flush=True,
                )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    first = {run["points"][0]["reward"] for own in runs.values() for run in own}
    if len(first) != 1:
        raise RuntimeError("the sides did not begin with the same policy")
    from reward_kit.model.model_folder import RewardMetadata

    text = report(args, runs, settings, RewardMetadata().versions)
    print(f"\n{text}")
    if not args.output:
        return
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        text
        + f"\n\n![True reward of held-out prompts against episodes]({args.output.with_suffix('.png').name})\n"
    )
    picture(runs, args.batch, args.output.with_suffix(".png"))


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    elif args.worker == "reward":
        train_reward(args.work / "rm", args.pairs)
    else:
        answer = one_run(
            args.worker,
            json.loads((args.work / "given.json").read_text()),
            args.trl_folder,
            args.work / "out",
        )
        (args.work / "answer.json").write_text(json.dumps(answer))
