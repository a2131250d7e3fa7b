"""Scores a part of Parquet files, by itself: the same as score_ray.py, for a job array.

    python score_map.py MODEL INPUT OUTPUT.parquet i/n

scores the rows of part i of n (from 0): with SLURM, `--array=0-7` and `$SLURM_ARRAY_TASK_ID/8`. A part that
was killed is scored again from its beginning; those that are finished are not, since each has a file of its
own.
"""

import sys
from pathlib import Path

from datasets import load_dataset

from reward_kit import RewardModel


def main(model, source, target, part="0/1"):
    i, n = map(int, part.split("/"))
    if Path(target).exists():
        return print(f"{target} is there already")
    files = sorted(map(str, Path(source).glob("*.parquet"))) or source
    rows = load_dataset("parquet", data_files=files, split="train").shard(n, i, contiguous=True)
    scorer = RewardModel.from_pretrained(model)

    def score(batch):
        found = scorer.score(batch["prompt"], batch["response"], too_long="none")
        return {"score": found}

    unfinished = Path(f"{target}.part")
    rows.map(score, batched=True, batch_size=512).to_parquet(unfinished)
    unfinished.rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
