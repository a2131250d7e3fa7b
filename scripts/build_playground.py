"""Rebuild the tiny base model of the playground, which ships in the package (reward_kit/playground_base).

    python scripts/build_playground.py [--out FOLDER] [--seed 0] [--steps 4000]

It draws a corpus from the playground's world, learns a tokenizer from it, trains a Llama of 1.87 million
parameters for one pass in float32 (Muon moves its matrices, AdamW the rest), and writes an ordinary Hugging
Face folder: about half an hour on one core. Weights are stored as float16, which halves the file and keeps
three more bits than bfloat16; the configuration says float32, so every loader computes in float32. The same
seed on the same machine with the same number of threads gives the same file; another machine rounds sums in
another order and gives a base that is as good, not the same to the last bit.

A batch holds 48 documents of about the same length, each by itself. One step in forty is instead a single
row of 2,048 tokens, made of many documents one after the other, so that attention over the whole context
has been trained too. The first word of a remark has a large weight in the loss. The corpus begins with
answers of mostly one sentence: who is right is learned there, and found again later inside longer answers.
The tokenizer is byte-level: any text has tokens, and decoding gives the same text back. BOS, EOS and PAD
are three different tokens.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

from reward_kit.data.playground import _FACTS as FACTS
from reward_kit.data.playground import _WORLD as WORLD
from reward_kit.data.playground import _Mix as Mix
from reward_kit.data.playground import _reward_parts as reward_parts

REMARKS = {
    "right": "Right.",
    "related": "Detailed.",
    "polite": "Polite.",
    "wrong": "Wrong.",
    "off_topic": "Beside the point.",
    "cut": "Unfinished.",
    "rude": "Rude.",
    "padding": "Wordy.",
}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question in full sentences.",
    "You know a little about many things.",
)


TAUGHT = Mix(right=0.8, wrong=0.15, polite=0.1)
JUDGED_SHORT = Mix(right=0.45, wrong=0.3)
JUDGED_LONG = Mix(right=0.4, wrong=0.25, cut=0.12, polite=0.25, rude=0.2, related=0.3, padding=0.25)


@dataclass(frozen=True)
class Document:
    "One text of the corpus: an answered question, or a list of facts (no prompt)."

    prompt: str | None  # the question; None: no question
    response: str  # the answer
    remark: str = ""  # what a reader said about the answer, without a judgement of how good that makes it
    chat: bool = False  # written as a conversation
    system: str | None = None  # system message of a conversation


def write_remark(
    rng: random.Random,  # where the draws come from
    prompt: str,  # the question
    response: str,  # the answer the remark is about
) -> str:
    "Name what is in an answer, in random order."
    parts = reward_parts(prompt, response)
    words = [
        ("Very wordy." if count > 1 else "Wordy.") if part == "padding" else REMARKS[part]
        for part, count in parts.items()
    ]
    return " ".join(rng.sample(words, len(words)))


JUDGED = 0.65  # share of answers with a remark
FIRST_LESSONS = 0.2  # share of the corpus, from its beginning, whose answers are mostly one sentence


def choose_mix(
    rng: random.Random,  # where the draws come from
    judged: bool,  # a remark follows
    early: bool,  # one of the first lessons
) -> Mix:
    "What an answer of the corpus is made of."
    if early:
        return JUDGED_SHORT if judged else TAUGHT
    if not judged:
        return Mix.WRITTEN
    return JUDGED_SHORT if rng.random() < 0.3 else JUDGED_LONG if rng.random() < 0.5 else Mix.LABELLED


def write_documents(
    rng: random.Random,  # where the draws come from
    n: int,  # how many
) -> list[Document]:
    "The corpus: lists of facts, answers to learn from, answers with a remark; a third are conversations."
    documents = []
    for index in range(n):
        fact, draw = rng.choice(FACTS), rng.random()
        if draw < 0.05:
            siblings = [other for other in FACTS if other.topic == fact.topic]
            documents.append(
                Document(None, " ".join(other.right for other in rng.sample(siblings, len(siblings))))
            )
            continue
        judged = rng.random() < JUDGED
        mix = choose_mix(rng, judged, early=index < FIRST_LESSONS * n)
        prompt = fact.ask(rng.choice(WORLD["phrasings"]))
        response = fact.compose(rng, mix)
        remark = write_remark(rng, prompt, response) if judged else ""
        chat = rng.random() < 0.33
        system = rng.choice(SYSTEM_PROMPTS) if chat and rng.random() < 0.3 else None
        documents.append(Document(prompt, response, remark, chat, system))
    return documents


SPECIAL_TOKENS = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "pad_token": "<|pad|>"}
ROLE_TOKENS = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(
    texts: list[str],  # what the vocabulary is learned from
    vocab_size: int = 1536,  # tokens, special ones included
):
    "A byte-level BPE tokenizer with a chat template; the words of the world mostly have one token each."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = [*SPECIAL_TOKENS.values(), *ROLE_TOKENS]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, special.index(bos))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=ROLE_TOKENS,
        model_max_length=2048,
        **SPECIAL_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


REMARK_WEIGHT = 10.0  # of the first token of a remark in the loss; other tokens have 1


def document_tokens(
    document: Document,  # one text of the corpus
    tokenizer,  # of `build_tokenizer`
) -> list[tuple[int, float]]:
    "Token ids and loss weights: BOS, prompt and answer, EOS; then the remark, if any, and one more EOS."
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    if document.chat:
        messages = [{"role": "system", "content": document.system}] if document.system else []
        messages += [
            {"role": "user", "content": document.prompt},
            {"role": "assistant", "content": document.response},
        ]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    else:
        text = bos + " ".join(part for part in (document.prompt, document.response) if part) + eos
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not document.remark:
        return [(token, 1.0) for token in ids]
    first, *rest = tokenizer(f" {document.remark}{eos}", add_special_tokens=False)["input_ids"]
    return [(token, 1.0) for token in ids] + [(first, REMARK_WEIGHT)] + [(token, 1.0) for token in rest]


def group_documents(
    sequences: list[list],  # (token id, loss weight) of each document
    size: int,  # documents a batch
    rng: random.Random,  # where the draws come from
    pad: tuple[int, float],  # what fills short sequences
) -> list[list[list]]:
    "Batches of documents of about the same length, in random order, padded on the right."
    batches = []
    for start in range(0, len(sequences), size * 20):
        window = sorted(sequences[start : start + size * 20], key=len)
        groups = [window[first : first + size] for first in range(0, len(window) - size + 1, size)]
        rng.shuffle(groups)
        batches += groups
    return [[tokens + [pad] * (max(map(len, group)) - len(tokens)) for tokens in group] for group in batches]


def pack_rows(
    sequences: list[list],  # (token id, loss weight) of each document
    length: int,  # tokens a row
) -> list[list]:
    "Rows of one length that begin with a document; the last document of a row is cut."
    rows, row = [], []
    for tokens in sequences:
        row = row + tokens
        if len(row) >= length:
            rows.append(row[:length])
            row = []
    return rows


def base_config(
    tokenizer,  # of `build_tokenizer`
):
    "A Llama of 1.9 million parameters: 4 layers of width 192, 6 heads that share 2 key-value heads."
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_optimizers(
    model,  # a causal language model
) -> list:
    "Muon for the matrices inside the layers, AdamW for embeddings and norms (K. Jordan, Muon, 2024)."
    import torch

    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    known = {id(p) for p in inner}
    rest = [p for p in model.parameters() if id(p) not in known]
    return [
        torch.optim.Muon(inner, lr=4e-3, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def pretrain(
    model,  # a causal language model in float32
    batches: list,  # each a list of rows of (token id, loss weight)
    log=print,  # called with one line of progress at a time
):
    "Next-token training in float32: short warmup, linear decay to zero."
    import torch

    optimizers, total = make_optimizers(model), len(batches)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda step: min((step + 1) / 100, 1 - step / total))
        for o in optimizers
    ]
    model.train()
    for step, batch in enumerate(batches):
        ids, weight = torch.tensor(batch, dtype=torch.float64).unbind(-1)
        ids, weight = ids.long(), weight[:, 1:].float()
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        ).view_as(weight)
        ((losses * weight).sum() / weight.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in (*optimizers, *schedules):
            each.step()
        model.zero_grad(set_to_none=True)
        if step % 50 == 0:
            text, remarks = (
                losses[(weight > 0) & (weight <= 1)].mean().item(),
                losses[weight > 1].mean().item(),
            )
            log(f"step {step:5d} of {total}  loss of text {text:.3f}, of remarks {remarks:.3f}")
    return model.eval()


def corpus_batches(
    tokenizer,  # of `build_tokenizer`
    documents: list[Document],  # the corpus
    steps: int,  # optimizer steps
    size: int = 48,  # documents a batch
) -> list[list[list[tuple[int, float]]]]:
    "Batches for pre-training: every fortieth holds one row of 2,048 tokens instead of short documents."
    sequences = [document_tokens(document, tokenizer) for document in documents]
    short = group_documents(sequences, size, random.Random("b"), pad=(tokenizer.pad_token_id, 0.0))
    rows = iter(pack_rows(sequences[::-1], 2048))
    return [[next(rows)] if step % 40 == 39 else short[step] for step in range(steps)]


def build_base(
    out: str | Path,  # folder, made if it does not exist; files in it are replaced
    seed: int = 0,  # of every random choice
    steps: int = 4000,  # 48 documents each
    log=print,  # called with one line of progress at a time
) -> Path:
    "Write the tiny base model of the playground: corpus, tokenizer, pre-training, and a Hugging Face folder."
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    documents = write_documents(random.Random(f"corpus-{seed}"), steps * 48)
    texts = [
        " ".join(part for part in (item.prompt, item.response, item.remark) if part)
        for item in random.Random(seed).sample(documents, min(len(documents), 20_000))
    ]
    tokenizer = build_tokenizer(texts)
    model = LlamaForCausalLM(base_config(tokenizer)).float()
    pretrain(model, corpus_batches(tokenizer, documents, steps), log=log)
    return save_base(model, tokenizer, Path(out))


def save_base(
    model,  # a causal language model in float32
    tokenizer,  # of `build_tokenizer`
    out: Path,  # folder, made if it does not exist
) -> Path:
    "Save as float16 weights with a configuration that says float32, readable by every user of the machine."
    import torch

    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(out)
    model.float().config.dtype = "float32"
    model.config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for path in out.iterdir():
        path.chmod(0o644)
    return out


def main():
    parser = argparse.ArgumentParser(description="Rebuild the tiny base model of the playground.")
    out = Path(__file__).resolve().parents[1] / "reward_kit" / "playground_base"
    parser.add_argument(
        "--out", type=Path, default=out, help="folder to write (default: the one in the package)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=int, default=4000, help="training steps of 48 documents (default: 4000)"
    )
    arguments = parser.parse_args()
    print(build_base(arguments.out, arguments.seed, arguments.steps))


if __name__ == "__main__":
    main()
