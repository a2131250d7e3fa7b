"""Every type of causal language model that transformers knows, as a reward model: where its head comes from,
how its batches are laid out and why, and whether what is saved gives the reward of what was trained.

    python benchmarks/architectures.py [--types llama granite ...] [--minutes 10]
        [--output benchmarks/results/architectures.md] [--merge]

Each type is made with random weights and a few thousand parameters, so nothing is downloaded. A type whose
configuration asks for more than its sizes cannot be made so, and is listed as such with what stopped it;
types for which no time was left are named, too. The best known come first. With --merge the rows of the
types that are tried replace theirs in the output, and the others stay as they were measured.
"""

import argparse
import logging
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from time import perf_counter

import torch
from common import publish, table, versions_line
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from reward_kit.data.playground import playground_base
from reward_kit.model.batches import RewardCollator, bind_reward_forward
from reward_kit.model.model_folder import load_reward_backbone
from reward_kit.model.packing import packing_problem

MOST = 5_000_000  # parameters of a model that is called tiny
SIZES = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=4, n_embd=16, n_layer=2, n_head=4, n_inner=24, d_model=16,
    n_layers=2, n_heads=4, ffn_dim=24, word_embed_proj_dim=16, num_layers=2, num_heads=4,
    ffn_hidden_size=24, max_position_embeddings=64, n_positions=64, rotary_dim=4,
    moe_intermediate_size=8, shared_expert_intermediate_size=8, moe_shared_expert_intermediate_size=8,
    num_experts=2, num_local_experts=2, n_routed_experts=2, moe_num_experts=2, num_experts_per_tok=1,
    moe_topk=1, moe_k=1, n_shared_experts=1, n_group=1, topk_group=1, q_lora_rank=8, kv_lora_rank=8,
    qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=4, first_k_dense_replace=1, global_head_dim=4,
    hidden_size_per_layer_input=4, vocab_size_per_layer_input=2048, num_kv_shared_layers=0,
    mamba_n_heads=4, mamba_d_head=8, mamba_num_heads=4, mamba_head_dim=8, state_size=4, ssm_state_size=4,
    mamba_d_state=4, n_groups=1, mamba_n_groups=1, lru_width=16, attention_hidden_size=16,
    decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=24, encoder_layers=2,
    encoder_attention_heads=4, encoder_ffn_dim=24, embedding_size=16, dim_feedforward=24, num_blocks=2,
    linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
    expert_intermediate_size=8, shared_intermediate_size=8, n_routed_expert=2, num_dense_layers=1,
    sliding_window=32, expert_ffn_hidden_size=8, kv_channels=4, head_size=4, index_n_heads=2,
    index_head_dim=8,
)  # fmt: skip
BY_HAND = {  # what a type asks for beside its sizes
    "gemma4_text": {"global_head_dim": 8, "num_key_value_heads": 2},
    "gemma4": {"global_head_dim": 8, "num_key_value_heads": 2},
    "gemma4_unified_text": {"global_head_dim": 8, "num_key_value_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 32},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8},
    "mamba2": {"num_heads": 4, "head_dim": 8},
    "longcat_flash": {"moe_topk": 2, "num_experts_per_tok": 2},  # its code for one at a time does not run
}
FIRST = """
llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next gemma gemma2 gemma3_text gemma4_text
llama4_text phi phi3 granite granitemoe granitemoehybrid lfm2 glm glm4 glm4_moe cohere cohere2 olmo2
olmo3 olmoe deepseek_v3 gpt_oss gpt2 gptj gpt_neo gpt_neox gpt_bigcode falcon falcon_h1 falcon_mamba
mamba mamba2 jamba bamba bloom mpt opt stablelm starcoder2 smollm3 ernie4_5 ernie4_5_moe hunyuan_v1_dense
exaone4 minimax nemotron seed_oss persimmon codegen xglm rwkv recurrent_gemma jetmoe dbrx apertus arcee
helium zamba2 bert roberta electra
""".split()
IDS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [5, 6, 7, 8, 9, 10, 11, 12, 20, 21, 22]]


def takes(config, name):
    "Whether a configuration has such a size, and it can be chosen."
    read_only = isinstance(getattr(type(config), name, None), property)
    try:
        return hasattr(config, name) and not read_only
    except Exception:  # a size that differs from layer to layer
        return True


def sized(kind, vocabulary, layers=2):
    "A configuration of a few thousand parameters."
    known = AutoConfig.for_model(kind)
    text = known.get_text_config()
    sizes = SIZES | {"num_hidden_layers": layers}
    given = {name: size for name, size in sizes.items() if takes(text, name)}
    kinds = getattr(text, "layer_types", None)
    if kinds:  # the last of each kind that there is
        given["layer_types"] = (list(dict.fromkeys(kinds)) * 2)[-layers:]
    given |= {"vocab_size": vocabulary, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    given |= {"is_decoder": True} if hasattr(text, "is_decoder") else {}
    given |= BY_HAND.get(kind, {})
    if text is known:
        try:
            return type(known)(**given)
        except AttributeError:  # kinds of layers that follow from other sizes
            return type(known)(**{name: value for name, value in given.items() if name != "layer_types"})
    part = next(name for name, value in vars(known).items() if value is text)
    return type(known)(**{part: type(text)(**given)})


def reward(model, layout="padded"):
    "Of two responses to one prompt."
    batch = RewardCollator(2, layout)([{"sequences": IDS}])
    with torch.no_grad():
        return model.eval()(**batch.model_inputs()).logits


def tried(kind, tokenizer, folder):
    "[where the head comes from, batches, whether the saved model gives the same rewards]"
    config = sized(kind, len(tokenizer))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if parameters > MOST:
        raise MemoryError(f"{parameters:,} parameters are left")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    known = type(config) in OWN
    try:
        model, _ = load_reward_backbone(folder / "base", new_head=True)
    except ValueError as error:
        return [f"refused: {str(error).removeprefix(f'model {folder}/base ')}", "", ""]
    before = reward(bind_reward_forward(model))
    problem = packing_problem(model)
    batches = "packed" if problem is None else f"padded: {problem.removeprefix(type(model).__name__ + ' ')}"
    model.save_pretrained(folder / "reward")
    loaded, _ = load_reward_backbone(folder / "reward", tokenizer=tokenizer)
    apart = (reward(bind_reward_forward(loaded)) - before).abs().max().item()
    same = "yes" if apart < 1e-5 else f"differ by {apart:.1e}"
    way = "a class of its own" if known else f"a head on its decoder, {type(model).__name__}"
    return [way, batches, same]


def merged(text, rows, left):
    "Both tables of an earlier result, with these rows in place of those of the same types."
    old = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("| ")]
    old = [list(map(str.strip, row)) for row in old if row[0] != " type "]
    new = {row[0]: row for row in (*rows, *left)}
    kept = [new.pop(row[0], row) for row in old] + [*new.values()]
    return [row for row in kept if len(row) == 4], [row for row in kept if len(row) == 2]


OWN = set(AutoModelForSequenceClassification._model_mapping)  # before any class is made


def main(args):
    warnings.simplefilter("ignore")
    logging.getLogger("reward_kit").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(playground_base())
    rows, left = [], []  # tried; not made
    kinds = [kind for kind in FIRST if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    kinds = args.types or list(dict.fromkeys([*kinds, *sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)]))
    start = perf_counter()
    while kinds and perf_counter() - start < 60 * args.minutes:
        kind = kinds.pop(0)
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows.append([kind, *tried(kind, tokenizer, Path(folder))])
                print(*rows[-1], sep="  ", flush=True)
            except Exception as error:
                said = " ".join(str(error).split())[:100].replace("|", "/")
                left.append([kind, f"{type(error).__name__}: {said}"])
                print(*left[-1], sep="  ", flush=True)
    again = ""
    if args.merge:
        count = len(rows) + len(left)
        rows, left = merged(args.output.read_text(encoding="utf-8"), rows, left)
        again = f" {count} of them were tried in a later run than the others."
    ways = Counter(row[1].partition(",")[0].partition(":")[0] for row in rows)
    layouts = Counter(row[2].partition(":")[0] for row in rows if row[2])
    same = sum(row[3] == "yes" for row in rows)
    tally = lambda counter: ", ".join(f"{name} {count}" for name, count in counter.most_common())
    text = (
        f"{len(rows)} of {len(rows) + len(left) + len(kinds)} types of causal language models that"
        f" transformers knows, each made with random weights: {tally(ways)}; {tally(layouts)};"
        f" {same} give the same rewards after saving and loading.{again}"
    )
    head = ["type", "where the head comes from", "batches", "the same rewards, saved and loaded"]
    lines = [text, "", *table(head, rows)]
    if left:
        stopped = "Not made so small, or not computed, and so not tried to the end:"
        lines += ["", stopped, "", *table(["type", "what stopped it"], left)]
    if kinds:
        lines += ["", f"Not tried in this run: {', '.join(kinds)}."]
    publish("\n".join([*lines, "", versions_line(torch.get_num_threads())]), args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", help="as transformers calls them; default: all")
    parser.add_argument("--minutes", type=float, default=60, help="no type is begun after them")
    parser.add_argument("--output", type=Path, help="Markdown file")
    parser.add_argument("--merge", action="store_true", help="keep the rows of other types in the output")
    main(parser.parse_args())
