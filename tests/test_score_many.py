"The tutorial's programs that score Parquet files: with `datasets.map`, and with Ray Data where it is there."

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from trainer_world import make_base, make_pairs

from reward_kit import RewardMetadata, RewardModel, load_reward_backbone, prepare_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "nbs" / "tutorials" / "score_many"
ROWS = [
    {"id": i, "prompt": pair["prompt"], "response": pair["chosen"]} for i, pair in enumerate(make_pairs(41))
]
ON_RAY = """
import ray, runpy, sys
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with a model and two files, and the score of each row."
    folder = tmp_path_factory.mktemp("score")
    backbone, tokenizer = load_reward_backbone(make_base(folder / "base"), new_head=True)
    RewardMetadata(encoding=prepare_tokenizer(tokenizer, backbone)).save(folder / "model")
    backbone.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "in").mkdir()
    for number in range(2):
        pd.DataFrame(ROWS[number::2]).to_parquet(folder / "in" / f"{number}.parquet")
    model = RewardModel.from_pretrained(folder / "model", device="cpu")
    return folder, model.score([r["prompt"] for r in ROWS], [r["response"] for r in ROWS])


def call(*command, cwd):
    env = os.environ | {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def check(found, expected):
    "Each row once, with all its columns and its score."
    found = found.sort_values("id").reset_index(drop=True)
    assert found["id"].tolist() == [row["id"] for row in ROWS]
    assert found["prompt"].tolist() == [row["prompt"] for row in ROWS]
    assert found["score"].tolist() == pytest.approx(expected, abs=1e-5)


def test_the_parts_of_a_job_array_are_the_whole(world, tmp_path):
    folder, expected = world
    program = PROGRAMS / "score_map.py"
    for number in range(2):
        out = tmp_path / f"{number}.parquet"
        call(program, folder / "model", folder / "in", out, f"{number}/2", cwd=tmp_path)
        assert "is there already" in call(
            program, folder / "model", folder / "in", out, f"{number}/2", cwd=tmp_path
        )
    check(pd.concat(map(pd.read_parquet, sorted(tmp_path.glob("*.parquet")))), expected)


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_ray_data_scores_all_rows_and_goes_on(world, tmp_path):
    folder, expected = world
    here = os.path.relpath(folder, tmp_path)
    words = (PROGRAMS / "score_ray.py", f"{here}/model", f"{here}/in", "out", 2)
    call("-c", ON_RAY, *words, cwd=tmp_path)
    files = sorted((tmp_path / "out").glob("*.parquet"))
    check(pd.concat(map(pd.read_parquet, files)), expected)
    call("-c", ON_RAY, *words, cwd=tmp_path)  # nothing is left to do
    after = pd.concat(map(pd.read_parquet, sorted((tmp_path / "out").glob("*.parquet"))))
    check(after[after["id"].notna()], expected)


def test_the_parts_of_the_command_are_neighbouring_rows(world, tmp_path):
    "Rows of one prompt stay together, all parts read the file alike, and none is asked for nothing."
    folder, expected = world
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in ROWS for _ in range(3)]
    (tmp_path / "in.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, rows))))
    model = RewardModel.from_pretrained(folder / "model", device="cpu")
    found = []
    for number in range(4):
        out = tmp_path / f"{number}.jsonl"
        report = model.score_file(tmp_path / "in.jsonl", out, shard=f"{number}/4")
        assert report.rows == [30, 31, 31, 31][number]
        found += map(json.loads, out.read_text().splitlines())
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row["score"] for row in found] == pytest.approx([s for s in expected for _ in range(3)], abs=1e-5)
    (tmp_path / "in.jsonl").write_text("".join(map("{}\n".format, map(json.dumps, rows[:3]))))
    with pytest.raises(ValueError, match="in.jsonl: part 0/4 of 3 rows has none"):
        model.score_file(tmp_path / "in.jsonl", tmp_path / "none.jsonl", shard="0/4")


def test_a_part_notices_an_input_that_changes(world, tmp_path):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps({"prompt": row["prompt"], "response": row["response"]}) + "\n" for row in ROWS] * 4
    source.write_text("".join(lines))
    model = RewardModel.from_pretrained(world[0] / "model", device="cpu")
    whole = model.one_ahead

    def meanwhile(*given):
        source.write_text("".join(lines + lines[:1]))
        yield from whole(*given)

    model.one_ahead = meanwhile
    with pytest.raises(ValueError, match="in.jsonl was changed while it was read"):
        model.score_file(source, out, shard="0/2", batch_rows=8)
    assert not out.exists()
