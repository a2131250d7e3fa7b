"""A model of a few thousand weights and a few dozen preference pairs, for tests of the trainer, also from
subprocesses."""

import random
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = (
    "the cat sat on a mat while rain fell over old stone roofs and nobody said thank you or sorry at all"
    " today".split()
)


def make_tokenizer(**special):
    special = special or {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=sorted(set(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_base(folder, seed=0, dropout=0.0, **special):
    "A tiny causal LM with its tokenizer, saved."
    tokenizer = make_tokenizer(**special)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        attention_dropout=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(Path(folder))


def make_pairs(n, seed=0):
    "Pairs whose better response thanks; lengths vary."
    rng = random.Random(seed)
    say = lambda k: " ".join(rng.choice(WORDS[:16]) for _ in range(k))
    return [
        {
            "prompt": f"{say(rng.randint(2, 12))} {i}?",
            "chosen": f"{say(rng.randint(2, 20))} thank you",
            "rejected": f"{say(rng.randint(2, 20))} sorry",
        }
        for i in range(n)
    ]


def make_dataset(n, seed=0):
    return Dataset.from_list(make_pairs(n, seed))
