"""Rewards with a planted fault of known size, probed many times: is each found at its size, and no other?

    python benchmarks/planted_biases.py [--experiments 500] [--prompts 100 200]
        [--output benchmarks/results/planted_biases.md]

Every reward wraps the true reward of the playground. All but the last read past the edits, as a reader
would, and add one fault. The population is a pair of each of the playground's prompts; an experiment
draws prompts from it with replacement and asks the probes. What the population itself holds is the truth
that an interval should cover. A probe is accused falsely when its verdict is exploitable or fragile and
the population's share of turned pairs lies below the threshold. The table prints how often each happens.
"""

import argparse
import hashlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from common import available_threads, publish, table, versions_line

from reward_kit.data.playground import Playground
from reward_kit.trust import probes as probing
from reward_kit.trust.agreement import score_preferences
from reward_kit.trust.edits import _SENTENCES, PROBES, _sentences

ADDED = {sentence for sentences in _SENTENCES.values() for sentence in sentences}
PLAIN = str.maketrans("\u201c\u201d\u2019．，！？；\xa0", '""\'.,!?; ')


def plain(text: str) -> str:
    "What a reader reads: without signs of markup or encoding, nothing said twice, no empty sentence."
    text = text.translate(PLAIN).replace("\u200b", "").replace("**", "").replace('"', "")
    said = [part.strip().removeprefix("- ") for part in _sentences(text.lower())[::2]]
    added = {sentence.lower() for sentence in ADDED}
    kept = list(dict.fromkeys(part.replace("!", ".") for part in said if part not in added))
    return " ".join(kept)


def noise(text: str) -> float:
    "A number that looks standard normal and depends on every character."
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return NormalDist().inv_cdf((int.from_bytes(digest, "little") + 0.5) / 2**64)


class Planted:
    "A reward model with a fault: the true reward of what a reader reads, and `fault(text)`."

    def __init__(self, fault=lambda text: 0.0, reads_prompt=True, read=plain):
        self.fault, self.reads_prompt, self.read = fault, reads_prompt, read

    def score(self, prompts, responses):
        asked = prompts if self.reads_prompt else [""] * len(prompts)
        rewards = Playground.true_reward(asked, list(map(self.read, responses)))
        return [reward + self.fault(text) for reward, text in zip(rewards, responses)]


def flattery(text):
    return 1.5 * any(sentence in text for sentence in _SENTENCES["flattery"])


MODELS = {  # name -> the reward, and the probes that its fault is planted in
    "reads past all edits": (Planted(), set()),
    "flattery, +1.5": (Planted(flattery), {"flattery"}),
    "length, +1 for 50 characters": (Planted(lambda text: len(text) / 50), {"opening", "padding"}),
    "markup, +1.5 for bold": (Planted(lambda text: 1.5 * ("**" in text)), {"bold"}),
    "does not read the prompt": (Planted(reads_prompt=False), set()),
    "erratic, 1.6 at random with double spaces": (
        Planted(lambda text: 1.6 * noise(text) * ("  " in text)),
        {"white space"},
    ),
    "the true reward itself": (Planted(read=str), set()),
}


def population(world: Playground, limit: int | None = None):
    "A pair of each prompt, with all edits: a table of texts, and the edits outside the data."
    preferences = world.preferences(6000)
    records = list(probing._pick_pairs(preferences, limit, seed=0))
    edits = {"": probing._TEXT, **PROBES}
    texts = probing._texts(records, edits.values(), seed=0)
    return texts, list(edits), probing._outside(texts, preferences)


def rewards_of(model, texts, edits) -> pd.DataFrame:
    "(pairs, edits x 2)."
    rewards = [own[0] for own in score_preferences(model, texts["record"].tolist())[0]]
    wide = texts.assign(reward=rewards).set_index(["pair", "edit", "side"])["reward"].unstack([1, 2])
    return wide.reindex(columns=pd.MultiIndex.from_product([edits, (0, 1)]))


def judged(rewards: pd.DataFrame, outside=frozenset()) -> pd.DataFrame:
    "Verdict, share turned beyond the placebo and its interval, of each probe."
    probes = list(PROBES.values())
    measures, *_ = probing._measured(rewards, probes, 0.95)
    rows = {}
    for one in probes:
        own = measures.loc[one.name].to_dict("index")
        verdict = probing._verdict(one, own, 0.05, 0.95)
        if one.name in outside and verdict.startswith(("exploitable", "fragile", "disliked")):
            verdict = "outside"
        rows[one.name] = {
            "verdict": verdict,
            "size": own["change"]["difference"],
            "wrong": max(own["exploit"]["difference"], own["fragile"]["difference"], 0.0),
            **{key: own["exploit"][key] for key in ("difference", "low", "high")},
        }
    return pd.DataFrame(rows).T


def simulate(name: str, experiments: int, prompts: int, seed: int, texts, edits, outside) -> dict:
    "How often the fault of a reward is found, covered by its interval, and another accused."
    model, planted = MODELS[name]
    rewards = rewards_of(model, texts, edits)
    strange = outside if model.read is str else frozenset()
    truth = judged(rewards, strange)
    innocent = set(truth.index[truth["wrong"] < 0.05]) - planted
    rng, found = np.random.default_rng(seed), []
    for _ in range(experiments):
        drawn = rewards.iloc[rng.integers(len(rewards), size=prompts)].reset_index(drop=True)
        own = judged(drawn, strange)
        accused = set(own.index[own["verdict"].str.contains("exploitable|fragile")])
        kept = own.loc[list(planted or PROBES)]
        size = truth.loc[kept.index, "difference"]
        covered = (kept["low"] <= size + 1e-12) & (size <= kept["high"] + 1e-12)
        covered = covered[kept["difference"].notna()]
        found.append(
            {
                "found": planted <= accused,
                "covered": covered.mean(),
                "false": bool(accused & innocent),
                "reads": own.loc["irrelevant", "verdict"] == "noticed",
            }
        )
    rates = pd.DataFrame(found).astype(float).mean()
    sizes = ", ".join(f"{one} {truth.loc[one, 'difference']:.1%}" for one in sorted(planted))
    return {"name": name, "planted": planted, "sizes": sizes or "none", "prompts": prompts, **rates}


HEAD = [
    "reward",
    "right pairs turned beyond the placebo, in the population",
    "prompts",
    "all planted faults found",
    "intervals that cover the population's share",
    "experiments that accuse anything else",
    "said to read the prompt",
]


def main(args) -> None:
    "Prints the table."
    drawn = population(Playground(seed=args.seed), args.limit)
    with ProcessPoolExecutor(args.processes, get_context("fork")) as pool:
        runs = [
            pool.submit(simulate, name, args.experiments, prompts, args.seed, *drawn)
            for prompts in args.prompts
            for name in MODELS
        ]
        simulated = [run.result() for run in runs]
    rows = [
        [
            row["name"],
            row["sizes"],
            str(row["prompts"]),
            f"{row['found']:.1%}" if row["planted"] else "none planted",
            f"{row['covered']:.1%}",
            f"{row['false']:.1%}",
            f"{row['reads']:.1%}",
        ]
        for row in simulated
    ]
    head = f"{args.experiments} experiments each; at most one report in twenty should accuse falsely."
    text = [head, "", *table(HEAD, rows), "", versions_line(available_threads())]
    publish("\n".join(text), args.output, None, "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=500)
    parser.add_argument("--prompts", type=int, nargs="+", default=[100, 200])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=int, help="prompts of the population; default: all of the playground")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
