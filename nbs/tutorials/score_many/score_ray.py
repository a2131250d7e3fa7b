"""Scores Parquet files on all machines of a Ray cluster.

    python score_ray.py MODEL INPUT OUTPUT ACTORS

INPUT is a file or a folder with columns id, prompt and response; OUTPUT gets them with a column score. Each
actor holds one model. There may be as many as processors, and none is counted for them, else nothing would be
left to read and write with (on GPUs give them `num_gpus=1`). A job that was killed goes
on with the rows that have no score yet when it is started again; the folder OUTPUT.done, which all machines
must see, holds the ids of the others.
"""

import os
import sys

import ray
from ray.data.checkpoint import CheckpointConfig


class Scorer:
    "An actor: it loads the model once."

    def __init__(self, model):
        from reward_kit import RewardModel

        self.model = RewardModel.from_pretrained(model)

    def __call__(self, batch):
        "Columns of some rows, as numpy has them."
        prompts, responses = batch["prompt"].tolist(), batch["response"].tolist()
        batch["score"] = self.model.score(prompts, responses, too_long="none")
        return batch


def everywhere(path):
    "The same for all processes, wherever they run: an address as it is, a path from the root."
    return path if "://" in path else os.path.abspath(path)


def main(model, source, target, actors):
    model = everywhere(model) if os.path.isdir(model) else model  # else of a hub
    source, target = everywhere(source), everywhere(target)
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=f"{target}.done", delete_checkpoint_on_success=False
    )
    rows = ray.data.read_parquet(source).repartition(target_num_rows_per_block=512)  # what a kill loses
    rows.map_batches(
        Scorer,
        fn_constructor_args=[model],
        batch_size=512,
        num_cpus=0,
        scheduling_strategy="SPREAD",
        compute=ray.data.ActorPoolStrategy(size=int(actors)),
    ).write_parquet(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
