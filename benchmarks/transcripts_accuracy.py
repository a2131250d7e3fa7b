"""Train on transcripts of real preferences and report accuracy on prompts not trained on, with its 95%
interval.

    python benchmarks/transcripts_accuracy.py PREFERENCES [--model playground] [--train-pairs 1800] [--epochs
        2] [--output FOLDER]

PREFERENCES is any preference file, for instance the HH-RLHF harmless test file (2,312 pairs). With
the playground's base, or a larger decoder with random weights (`--model random`), nothing is
downloaded; neither has read English, so expect an accuracy near chance.
"""

import argparse
import tempfile
from pathlib import Path

from reward_kit.data.playground import load_base
from reward_kit.data.preferences import load_preferences, split_by_prompt
from reward_kit.scores.inference import RewardModel
from reward_kit.tools.pipeline import train_reward_model


def random_decoder(folder: Path) -> str:
    """A Llama-shaped decoder of about 15 million parameters with random weights and the playground's
    tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    _, tokenizer = load_base()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(data: str, model: str, train_pairs: int, epochs: float, max_length: int, output: Path, seed: int = 0):
    "Split by prompt, train, evaluate; the report of the held-out pairs."
    preferences = load_preferences(data)
    train, held_out = split_by_prompt(preferences, 1 - train_pairs / len(preferences), seed=seed)
    config = {
        "num_train_epochs": epochs,
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-4,
        "max_length": max_length,
        "seed": seed,
    }
    model = random_decoder(output / "random-base") if model == "random" else model
    return train_reward_model(
        model, train, output / "reward-model", eval_data=held_out, config=config, overwrite=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--model", default="playground")
    parser.add_argument("--train-pairs", type=int, default=1800)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()
    output = args.output or Path(tempfile.mkdtemp(prefix="reward-kit-"))
    result = run(args.data, args.model, args.train_pairs, args.epochs, args.max_length, output)
    print(result.evaluation)
    rm = RewardModel.from_pretrained(result.path)
    row = result.held_out[0]
    print("\nOne held-out prompt, its two responses ranked:")
    for index, score in rm.rank(row["prompt"], row["responses"]):
        print(f"  {score:+.3f}  response {index} (people ranked it {row['ranks'][index]})")
    print(f"\nReward-model folder: {result.path}")
