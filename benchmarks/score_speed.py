"""Pairs per second of scoring: ours beside a plain loop over a transformers model and its text-classification
pipeline, on the same texts.

    python benchmarks/score_speed.py --data hh-rlhf-harmless-test.jsonl.gz [--output
        benchmarks/results/score_speed.md]
    python benchmarks/score_speed.py --data FILE --dtype bf16-weights [--reward-model FOLDER] [--output ...]

Ours is RewardModel.score on the file's conversations: applying the chat template, tokenising,
batching and the model, in one call. The others get the rendered texts, so that they are spared the
template. The pipeline runs at batch sizes 8 and 32, in the order of the file and with the texts
sorted by length beforehand; float32 and raw scores on all sides. Then the best of 16: prompts of
the file with sixteen responses each, drawn from the responses of the whole file, packed and padded.
That all give the same scores is checked in the run. With --dtype bf16-weights: what weights in
bfloat16 (the head stays float32) do to speed and to the ranking, against float32. A process each,
in alternating order.
"""

import argparse
import json
import random
from pathlib import Path
from statistics import median
from time import perf_counter

from common import (
    BLUE,
    ORANGE,
    Workers,
    alternating,
    answer,
    build_tokenizer,
    common_arguments,
    evenly,
    middle,
    model_line,
    new_figure,
    peak_gib,
    publish,
    read_pairs,
    save_reward_model,
    table,
    texts_of,
    versions_line,
)

SIDES = {
    "ours": "reward_kit: rm.score(prompts, responses)",
    "loop": "transformers, one text at a time",
    "pipeline-8": "transformers pipeline, batch 8",
    "pipeline-32": "transformers pipeline, batch 32",
    "pipeline-8-sorted": "transformers pipeline, batch 8, sorted by hand",
    "pipeline-32-sorted": "transformers pipeline, batch 32, sorted by hand",
}
BEST = {"best-packed": "reward_kit, packed (default)", "best-padded": "reward_kit, padded, sorted by length"}
PRECISION = {"float32": "float32 weights", "bfloat16": "bfloat16 weights, float32 head"}


def prepare(
    work: Path, data: str, model: str, vocabulary: int, n: int, prompts: int, k: int, folder: str | None
) -> dict:
    "The model, pairs with the file's distribution of lengths, and prompts with k responses each."
    from reward_kit.scores.inference import RewardModel

    pairs, facts = read_pairs(data), {"folder": folder}
    if folder is None:
        facts |= save_reward_model(
            work / "model", build_tokenizer(texts_of(pairs), vocabulary), model, 4096, 2048
        ) | {"folder": str(work / "model")}
    rm, chance = RewardModel.from_pretrained(facts["folder"], device="cpu"), random.Random(0)
    limit = rm.encoder.encoding.max_length
    ids = lambda prompts, responses: rm.encoder.encode(prompts, responses)
    longest = [max(len(rm.encoder.render(prompt, r)) for r in responses) for prompt, responses in pairs]
    order = [
        i for i in sorted(range(len(pairs)), key=longest.__getitem__) if longest[i] < 2 * limit
    ]  # characters: none is cut, and the others would have to cut it
    sample = [pairs[i] for i in evenly(order, n)]
    chance.shuffle(sample)
    everything = [response for _, responses in pairs for response in responses]
    best = [
        (prompt, [*responses, *chance.sample(everything, k - len(responses))])
        for prompt, responses in chance.sample(sample, prompts)
    ]
    groups = {"pairs": sample, "best": best}
    for name, rows in groups.items():
        flat = (
            [prompt for prompt, responses in rows for _ in responses],
            [response for _, responses in rows for response in responses],
        )
        encoded = ids(*flat)
        bos, eos = rm.tokenizer.bos_token or "", rm.tokenizer.eos_token or ""  # the tokenizer adds them
        texts = [rm.encoder.render(*row).removeprefix(bos).removesuffix(eos) for row in zip(*flat)]
        if any(encoded.cut) or None in encoded.ids or rm.tokenizer(texts)["input_ids"] != encoded.ids:
            raise RuntimeError("texts that not all sides read alike")
        (work / f"{name}.json").write_text(
            json.dumps({"prompts": flat[0], "responses": flat[1], "texts": texts})
        )
        facts[f"{name} tokens"] = sum(map(len, encoded.ids)) / len(texts)
    return facts | {"prompts": prompts, "k": k}


def score(work: Path, side: str, folder: str, dtype: str = "float32") -> dict:
    "One way of scoring in this process: seconds, scores, peak memory."
    import torch
    import transformers

    from reward_kit.model.settings import quiet
    from reward_kit.scores.inference import RewardModel, RowScorer

    rows, started = (
        json.loads((work / ("best.json" if side.startswith("best") else "pairs.json")).read_text()),
        peak_gib(),
    )
    texts = rows["texts"]
    with quiet():
        if side in ("ours", *BEST):
            rm = RewardModel.from_pretrained(folder, device="cpu", dtype=getattr(torch, dtype))
            if side == "best-padded":
                rm.scorer = RowScorer(rm.model, rm.tokenizer.pad_token_id, layout="padded")
            call = lambda n: rm.score(rows["prompts"][:n], rows["responses"][:n])
        elif side == "loop":
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=getattr(torch, dtype)
            ).eval()

            @torch.inference_mode()
            def call(n):
                return [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts[:n]]

        else:
            pipe = transformers.pipeline(
                "text-classification",
                folder,
                dtype=getattr(torch, dtype),
                device="cpu",
                function_to_apply="none",
                batch_size=int(side.split("-")[1]),
            )

            def call(n):
                order = (
                    sorted(range(min(n, len(texts))), key=lambda i: len(texts[i]))
                    if side.endswith("sorted")
                    else range(min(n, len(texts)))
                )
                found = dict(zip(order, pipe([texts[i] for i in order])))
                return [found[i]["score"] for i in range(len(order))]

    call(4)  # warms up
    begin = perf_counter()
    scores = call(len(texts))
    seconds = perf_counter() - begin
    return {
        "seconds": seconds,
        "speed": len(texts) / seconds,
        "scores": scores,
        "imports_gib": started,
        "peak_gib": peak_gib(),
    }


def check_scores(found: dict[str, list[dict]], tolerance: float) -> float:
    "Largest difference of scores of the same texts. RuntimeError beyond the tolerance."
    worst = 0.0
    for sides in (SIDES, BEST):
        runs = [run["scores"] for side in sides for run in found.get(side, ())]
        worst = max([worst, *(abs(a - b) for one in runs for a, b in zip(one, runs[0], strict=True))])
    if worst > tolerance:
        raise RuntimeError(f"scores of the same texts differ by {worst:.2g}")
    return worst


def speed_rows(found: dict, names: dict, base: str, per: int) -> list[list[str]]:
    "A row a side; `per` texts make one of what is counted."
    rows = []
    for side, name in names.items():
        runs = found[side]
        ratio = median(a["speed"] / b["speed"] for a, b in zip(runs, found[base]))
        each = ", ".join(f"{run['speed'] / per:.2f}" for run in runs)
        rows.append(
            [
                name,
                f"{middle(runs, 'speed') / per:.2f} ({each})",
                f"{ratio:.2f}",
                f"{middle(runs, 'peak_gib'):.2f} ({middle(runs, 'imports_gib'):.2f})",
            ]
        )
    return rows


def model_words(args, facts: dict) -> str:
    "What scores."
    return (
        f"the reward model {Path(args.reward_model).resolve().name}"
        if args.reward_model
        else model_line(facts)
    )


def float32(args, workers: Workers, facts: dict) -> None:
    "All ways of scoring, float32."
    found, names = {}, SIDES | BEST
    for i in range(args.rounds):
        for side in alternating(names, i):
            found.setdefault(side, []).append(workers.ask("score", side=side, folder=facts["folder"]))
            print(
                f"round {i + 1} of {args.rounds}, {names[side]:46}: {found[side][-1]['speed']:7.2f} texts/s",
                flush=True,
            )
    worst, memory = check_scores(found, 1e-4), "peak memory, GiB (before the model is read)"
    lines = [
        (
            f"Scoring with {model_words(args, facts)}, float32. Rounds of processes in alternating order:"
            f" {args.rounds}."
        ),
        "",
        f"## {args.pairs} pairs of {Path(args.data).name}, {facts['pairs tokens']:.0f} tokens a text",
        "",
        *table(
            ["", "pairs/s, median (each round)", "of the plain loop's speed", memory],
            speed_rows(found, SIDES, "loop", 2),
        ),
        "",
        (
            f"## Best of {args.k}: {args.prompts} prompts with {args.k} responses each,"
            f" {facts['best tokens']:.0f} tokens a text"
        ),
        "",
        *table(
            ["", "prompts/s, median (each round)", "of the padded speed", memory],
            speed_rows(found, BEST, "best-padded", args.k),
        ),
        "",
        (
            f"All scores of the same text are the same to {worst:.1e}, over all sides and rounds (checked in"
            " the run; 1e-4 is allowed). Ours includes the chat template and tokenising; the loop and the"
            " pipeline get texts that are rendered already. The pipeline pads a batch to its longest text;"
            " sorting by length is not its own, it is done here, in the time measured."
        ),
        "",
        versions_line(args.threads),
    ]
    publish("\n".join(lines), args.output, speed_figure(found, args), "Scoring speed")


def speed_figure(found: dict, args):
    "Pairs per second, and prompts per second of the best of k."
    figure, panels = new_figure(2, 1, 6.4, 3.8)
    for axes, names, per, label in (
        (panels[0, 0], SIDES, 2, "pairs per second"),
        (panels[1, 0], BEST, args.k, f"prompts per second, best of {args.k}"),
    ):
        values = [middle(found[side], "speed") / per for side in names]
        drawn = axes.barh(
            list(names.values()),
            values,
            color=[BLUE if name.startswith("reward_kit") else ORANGE for name in names.values()],
        )
        axes.bar_label(drawn, fmt="%.2f", fontsize=7.5, padding=2)
        axes.invert_yaxis()
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=7.5)
        axes.margins(x=0.1)
    figure.get_layout_engine().set(hspace=0.05)
    return figure


def ranking(reference: list[float], scores: list[float]) -> dict:
    "What other weights change in the order of texts; pairs of a prompt are neighbours."
    from scipy.stats import kendalltau

    sign = lambda a, b: (a > b) - (a < b)
    pairs = [(sign(*reference[i : i + 2]), sign(*scores[i : i + 2])) for i in range(0, len(scores), 2)]
    return {
        "turned": sum(a * b < 0 for a, b in pairs) / len(pairs),
        "tied": sum(b == 0 for _, b in pairs) / len(pairs),
        "tied before": sum(a == 0 for a, _ in pairs) / len(pairs),
        "tau": float(kendalltau(reference, scores).statistic),
        "values": len(set(scores)) / len(scores),
        "difference": max(abs(a - b) for a, b in zip(reference, scores)),
    }


def small_weights(args, workers: Workers, facts: dict) -> None:
    "bfloat16 weights against float32: speed and ranking."
    found = {}
    for i in range(args.rounds):
        for dtype in alternating(PRECISION, i):
            for side in ("ours", "best-packed"):
                found.setdefault((dtype, side), []).append(
                    workers.ask("score", side=side, folder=facts["folder"], dtype=dtype)
                )
                print(
                    f"round {i + 1} of {args.rounds}, {PRECISION[dtype]:32} {side:12}:"
                    f" {found[dtype, side][-1]['speed']:7.2f} texts/s",
                    flush=True,
                )
    rows = []
    for side, title, per in (("ours", "pairs", 2), ("best-packed", f"prompts, best of {args.k}", args.k)):
        for dtype, name in PRECISION.items():
            runs = found[dtype, side]
            ratio = median(a["speed"] / b["speed"] for a, b in zip(runs, found["float32", side]))
            rows.append(
                [
                    title,
                    name,
                    (
                        f"{middle(runs, 'speed') / per:.2f}"
                        f" ({', '.join(f'{one / per:.2f}' for one in (run['speed'] for run in runs))})"
                    ),
                    f"{ratio:.2f}",
                    f"{middle(runs, 'peak_gib'):.2f}",
                ]
            )
    full, small = found["float32", "ours"][0]["scores"], found["bfloat16", "ours"][0]["scores"]
    change, spread = (
        ranking(full, small),
        (sum((s - sum(full) / len(full)) ** 2 for s in full) / len(full)) ** 0.5,
    )
    facts_rows = [
        ["pairs whose order is turned around", f"{change['turned']:.2%}"],
        ["pairs whose two scores tie (in float32)", f"{change['tied']:.2%} ({change['tied before']:.2%})"],
        ["Kendall's tau-b of all texts against float32", f"{change['tau']:.4f}"],
        ["texts with a score of their own", f"{change['values']:.1%}"],
        [
            "largest difference of a score",
            f"{change['difference']:.2g} (standard deviation of the scores: {spread:.2g})",
        ],
    ]
    full_best, small_best = (found[dtype, "best-packed"][0]["scores"] for dtype in PRECISION)
    first = lambda scores, i: max(range(args.k), key=lambda j: scores[i + j])
    same = sum(first(full_best, i) == first(small_best, i) for i in range(0, len(full_best), args.k)) / (
        len(full_best) // args.k
    )
    facts_rows.append([f"prompts whose best of {args.k} is the same", f"{same:.1%}"])
    lines = [
        (
            f"Scoring with {model_words(args, facts)}: weights in bfloat16 (RewardModel.from_pretrained(...,"
            f" dtype=torch.bfloat16); the head stays float32) against float32, on {args.pairs} pairs of"
            f" {Path(args.data).name}. Rounds: {args.rounds}."
        ),
        "",
        *table(
            ["", "weights", "a second, median (each round)", "of float32's speed", "peak memory, GiB"], rows
        ),
        "",
        *table(["ranking", ""], facts_rows),
        "",
        versions_line(args.threads),
    ]
    figure, panels = new_figure(1, 1, 3.8, 3.4)
    axes = panels.flat[0]
    axes.scatter(full, small, s=8, alpha=0.5, color=BLUE, edgecolors="none")
    ends = min(full), max(full)
    axes.plot(ends, ends, color=ORANGE, linewidth=1, linestyle="--", label="equal")
    axes.set(xlabel="score, float32 weights", ylabel="score, bfloat16 weights")
    axes.legend(frameon=False, fontsize=8)
    publish("\n".join(lines), args.output, figure, "Scores with bfloat16 weights against float32")


def arguments():
    "Of the command."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a preference file")
    parser.add_argument("--dtype", choices=["fp32", "bf16-weights"], default="fp32")
    parser.add_argument(
        "--reward-model",
        type=Path,
        help=(
            "a folder that reward_kit trained; default: random weights. What bfloat16 does to a ranking is"
            " best seen on a trained one"
        ),
    )
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=32, help="prompts of the best of k")
    parser.add_argument("--k", type=int, default=16, help="responses to each of them")
    parser.add_argument("--rounds", type=int, default=3)
    common_arguments(parser)
    args = parser.parse_args()
    if args.worker is None and not args.data:
        parser.error("--data is missing: a preference file")
    if args.prompts > args.pairs:
        parser.error(f"--prompts {args.prompts} are taken from the {args.pairs} --pairs")
    return args


def main(args) -> None:
    "Prepare, measure, report."
    with Workers(__file__, args.threads) as workers:
        folder = args.reward_model and str(args.reward_model.resolve())
        facts = workers.ask(
            "prepare",
            data=args.data,
            model=args.model,
            vocabulary=args.vocabulary,
            n=args.pairs,
            prompts=args.prompts,
            k=args.k,
            folder=folder,
        )
        (float32 if args.dtype == "fp32" else small_weights)(args, workers, facts)


if __name__ == "__main__":
    args = arguments()
    if args.worker is None:
        main(args)
    else:
        answer(args.worker, {"prepare": prepare, "score": score})
