"""TRL's own tests of its reward trainer, run on ours: what passes, and what with another expectation.

    python benchmarks/trl_tests.py [--version 1.16.0] [--source PATH] [--keep FOLDER] [-k EXPRESSION]
        [--output benchmarks/results/trl_tests.md]

The tests come from GitHub by git (the tag of --version), or from --source: a checkout, a git directory (the
tag, else its HEAD) or an archive. Their file is copied into a temporary folder, where its import of
RewardTrainer and RewardConfig is turned to ours. Nothing else comes from a network: models are drawn at
random in the shapes that their names say, with a tokenizer trained here, and stand where the tests look for
them; data sets are made of the playground's pairs. It runs three times: TRL's trainer, which shows what
such models, this version of TRL and a machine without a GPU make of it; ours; and ours with the expectations
of `REWRITES`, each of which has its reason. A rewrite that does not find its text is an error.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from common import publish, table, versions_line

URL, FILE, TEMPLATE = (
    "https://github.com/huggingface/trl",
    "tests/test_reward_trainer.py",
    "tests/data/template.jinja",
)
IMPORT = "from trl import RewardConfig, RewardTrainer"


@dataclass
class Rewrite:
    "Another expectation of some tests; those that a version of TRL does not have are passed over."

    tests: str  # their names
    old: str  # an expression of theirs, or a line
    new: str
    reason: str


ORIGINAL = (
    'elif "base_layer" not in n:',
    'elif "base_layer" not in n and "original_module" not in n:',
)
REWRITES = [
    Rewrite(
        """test_train_dense_with_peft_config test_train_peft_model
        test_train_with_peft_config_and_gradient_checkpointing
        test_train_with_peft_config_and_gradient_checkpointing_reentrant""",
        *ORIGINAL,
        "TRL leaves the head frozen under LoraConfig(), a new one at random, and its test asks that it is "
        "left so. Here it is trained: PEFT keeps the untouched one as original_module, and its trained copy "
        "must change.",
    ),
    Rewrite(
        "test_train_moe_with_peft_config",
        *ORIGINAL,
        "The whole head is trained, not a low-rank change of it: PEFT keeps the untouched one as "
        "original_module, and its trained copy must change.",
    ),
    Rewrite(
        "test_train_peft_model",
        "lora_config = LoraConfig()",
        'lora_config = LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"])',
        "A PeftModel whose head is random and frozen is refused, and this is what the message advises.",
    ),
    Rewrite(
        "test_train_model_dtype",
        "assert new_param.dtype == torch.float16",
        "assert new_param.dtype == torch.float32",
        "16 bits lose small steps, so weights in float16 are trained in float32, and the log says so.",
    ),
    Rewrite(
        "test_train_with_pretokenized_data",
        'with pytest.warns(FutureWarning, match=r"will not be supported in v1"):',
        "if True:",
        "Token ids under the older names are read for good, so there is nothing to warn of.",
    ),
    Rewrite(
        "test_train_with_chat_template_kwargs",
        'You are a helpful assistant.<|im_end|>"\n',
        'You are a helpful assistant.<|im_end|>" if i else "<|im_start|>user\\n"\n',
        "A system prompt that is in no one's data is not inserted, in training and scoring (chapter 22), "
        "so such a text begins with the user's turn; one that a row's own arguments change stays.",
    ),
    Rewrite(
        "test_train_with_chat_template_kwargs",
        'trainer.processing_class(system_prompt)["input_ids"]',
        'trainer.processing_class(system_prompt, add_special_tokens=False)["input_ids"]',
        "The tokenizer adds the EOS by itself, so that whoever scores plain text does not forget it.",
    ),
    Rewrite(
        "test_train_with_set_chat_template_from_path",
        "template_content == original_template_content",
        "AutoTokenizer.from_pretrained(template_path.parent).apply_chat_template("
        'dataset[0]["prompt"] + dataset[0]["chosen"], return_dict=False) == '
        'trainer.train_dataset[0]["chosen_ids"]',
        "The saved template is not the given one but renders what was trained, with its BOS and EOS; that is "
        "asked here; as it was given, other programs would read the reward at another token.",
    ),
    Rewrite(
        "test_train_with_eval",
        'trainer.state.log_history[0]["eval_loss"]',
        'next(row for row in trainer.state.log_history if "eval_loss" in row)["eval_loss"]',
        "A short run logs every step, so the first entry of the log is one of training.",
    ),
]


def members(source: Path, version: str) -> dict:
    "{path: text} of the two files, from a checkout, a git directory or an archive."
    wanted = (FILE, TEMPLATE, "VERSION")
    if source.is_file():
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names, read = archive.namelist(), archive.read
                found = {
                    name: read(path).decode()
                    for path in names
                    for name in wanted
                    if path.endswith(f"/{name}")
                }
        else:
            with tarfile.open(source) as archive:
                found = {
                    name: archive.extractfile(member).read().decode()
                    for member in archive for name in wanted if member.name.endswith(f"/{name}")
                }  # fmt: skip
        return found | {"commit": source.name}
    git = ["git", "-C", str(source), "-c", "safe.directory=*"]
    tag = f"v{version}"
    if subprocess.run([*git, "rev-parse", "-q", "--verify", tag], capture_output=True).returncode:
        tag = "HEAD"
    show = lambda *words: subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
    if (source / FILE).exists():
        found = {name: (source / name).read_text() for name in wanted}
        return found | {
            "commit": show("rev-parse", "HEAD")[:12] if (source / ".git").exists() else source.name
        }
    found = {name: show("show", f"{tag}:{name}") for name in wanted}
    return found | {"commit": show("rev-parse", f"{tag}^{{commit}}")[:12]}


def fetched(source: Path | None, version: str) -> dict:
    "The files; ValueError where they are not there."
    if source:
        try:
            found = members(source, version)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError):
            found = {}
    else:
        with tempfile.TemporaryDirectory() as folder:
            command = ["git", "clone", "-q", "--depth", "1", "--branch", f"v{version}", URL, folder]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise ValueError(
                    f"{URL} has no v{version}, or is not reached ({done.stderr.strip()[-200:]}): "
                    "give --version, or --source with a checkout or an archive"
                )
            found = members(Path(folder), version)
    if FILE not in found:
        raise ValueError(f"{source} has no {FILE}: give a checkout or an archive of TRL's repository")
    return found


def rewritten(text: str) -> tuple[str, dict]:
    "The file with the expectations of `REWRITES`, and {test: reasons}."
    spans = {node.name: (node.lineno - 1, node.end_lineno) for node in ast.walk(ast.parse(text))
             if isinstance(node, ast.FunctionDef)}  # fmt: skip
    lines, reasons = text.splitlines(keepends=True), {}
    for rewrite in REWRITES:
        for name in rewrite.tests.split():
            if name not in spans:
                continue
            start, end = spans[name]
            body = "".join(lines[start:end])
            if rewrite.old not in body:
                raise ValueError(f"{name} has no {rewrite.old!r} any more: look at it, and change REWRITES")
            lines[start:end] = [body.replace(rewrite.old, rewrite.new)] + [""] * (end - start - 1)
            reasons.setdefault(name, []).append(rewrite.reason)
    return "".join(lines), reasons


CHATML = (
    "{%- if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + (m.content or '') }}"
    "{%- for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{%- endfor %}"
    "{{ '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)


def pairs(n: int) -> list[dict]:
    "Prompt, chosen and rejected of the playground."
    from reward_kit import Playground

    found = []
    for record in Playground(seed=0).preferences(4 * n):
        if len(found) < n and record["prompt"] not in {row["prompt"] for row in found}:
            chosen, rejected = record["responses"]
            found.append({"prompt": record["prompt"], "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return found


def tokenizer(special: dict, template: str | None, bos: bool):
    "Byte-level BPE, as the models of these names have; trained on the pairs."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] if template else ["<|endoftext|>", "<|padding|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=[*dict.fromkeys([*marks, *special.values()])], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    core.train_from_iterator([text for row in pairs(40) for text in row.values()], trainer)
    if bos:
        mark = special["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{mark} $A", special_tokens=[(mark, core.token_to_id(mark))]
        )
    made = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    made.chat_template = template
    return made


QWEN = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
KINDS = {  # part of a name -> type, special tokens, chat template, whether BOS is added
    "Qwen2": ("qwen2", QWEN, CHATML, False),
    "Qwen3Moe": ("qwen3_moe", QWEN, CHATML, False),
    "Remote": ("llama", QWEN, CHATML, False),
    "Llama": ("llama", {"bos_token": "<|begin|>", "eos_token": "<|im_end|>"}, CHATML, True),
    "GPTNeoX": ("gpt_neox", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, None, False),
}
SIZES = dict(
    hidden_size=8, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=2, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, max_position_embeddings=2048,
)  # fmt: skip


REMOTE = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel
from transformers import LlamaPreTrainedModel

class RemoteConfig(LlamaConfig):
    model_type = "remote"

class RemoteModel(LlamaModel):
    config_class = RemoteConfig

class RemoteForCausalLM(LlamaForCausalLM):
    config_class = RemoteConfig

class RemoteForSequenceClassification(LlamaForSequenceClassification):
    config_class = RemoteConfig

    def __init__(self, config):
        LlamaPreTrainedModel.__init__(self, config)
        self.num_labels, self.model = config.num_labels, RemoteModel(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def with_code(folder: Path) -> None:
    "Turns a Llama into a model whose code comes along."
    (folder / "remote.py").write_text(REMOTE)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "Config", "AutoModel": "Model", "AutoModelForCausalLM": "ForCausalLM",
             "AutoModelForSequenceClassification": "ForSequenceClassification"}  # fmt: skip
    config["auto_map"] = {auto: f"remote.Remote{name}" for auto, name in names.items()}
    config |= {"model_type": "remote", "architectures": ["RemoteForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))


def make_models(text: str, folder: Path) -> None:
    "A folder for every model that the tests name."
    import torch
    import transformers

    for name in sorted({*re.findall(r"trl-internal-testing/tiny-[\w.-]+", text)}):
        stem = name.split("tiny-")[1]
        kind = next((kind for kind in sorted(KINDS, key=len, reverse=True) if stem.startswith(kind)), None)
        if kind is None:
            raise ValueError(f"{name} is of a type that KINDS does not have: add it there")
        model_type, special, template, bos = KINDS[kind]
        made = tokenizer(special, template, bos)
        task = "SequenceClassification" if "SequenceClassification" in name else "CausalLM"
        labels = {"num_labels": 1} if task == "SequenceClassification" else {}
        config = transformers.AutoConfig.for_model(
            model_type, **SIZES, **labels, vocab_size=len(made),
            **{f"{key}_id": made.convert_tokens_to_ids(token) for key, token in special.items()},
        )  # fmt: skip
        torch.manual_seed(0)
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
        model.save_pretrained(folder / name)
        made.save_pretrained(folder / name)
        if kind == "Remote":
            with_code(folder / name)
    for name in re.findall(r'chat_template_path="([\w.-]+/[\w.-]+)"', text):
        tokenizer(QWEN, CHATML, False).save_pretrained(folder / name)


def make_data(folder: Path) -> None:
    "17 rows to train on and 2 to evaluate on, in each of the layouts."
    said = lambda role, content: [{"role": role, "content": content}]
    sides = ("chosen", "rejected")
    sets = {}
    for split, rows in (("train", pairs(19)[:17]), ("test", pairs(19)[17:])):
        chats = [
            {"prompt": said("user", row["prompt"]),
             **{side: said("assistant", row[side].strip()) for side in sides}} for row in rows
        ]  # fmt: skip
        sets[split] = {
            "standard_preference": rows,
            "conversational_preference": chats,
            "standard_implicit_prompt_preference": [
                {side: row["prompt"] + row[side] for side in sides} for row in rows
            ],
            "conversational_implicit_prompt_preference": [
                {side: row["prompt"] + row[side] for side in sides} for row in chats
            ],
            "preference": [with_tools(i) for i in range(len(rows))],
        }
    (folder / "data.json").write_text(json.dumps(sets))


def with_tools(i: int) -> dict:
    "A question that is answered by a function, or by another one; arguments have different names."
    place, degrees = ["Oslo", "Lima", "Kyoto", "Accra", "Quito"][i % 5], 10 + i
    call = lambda name, **given: {"role": "assistant", "tool_calls": [
        {"type": "function", "function": {"name": name, "arguments": given}}]}  # fmt: skip
    answer = lambda name, text: [{"role": "tool", "name": name, "content": text},
                                 {"role": "assistant", "content": f"It is {text}."}]  # fmt: skip
    tool = lambda name, argument: {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Asks for the {name}.",
            "parameters": {
                "type": "object",
                "required": [argument],
                "properties": {argument: {"type": "string"}},
            },
        },
    }
    return {
        "prompt": [{"role": "user", "content": f"How warm is it in {place}?"}],
        "chosen": [call("weather", place=place), *answer("weather", f"{degrees} degrees")],
        "rejected": [call("clock", zone=place), *answer("clock", f"{i % 12 + 1} o'clock")],
        "tools": json.dumps([tool("weather", "place"), tool("clock", "zone")]),
    }


CONFTEST = """
"Without a network: data sets of a file, and what a machine without an accelerator needs."
import json, pathlib
import datasets, pytest, torch, trl

SETS = json.loads(pathlib.Path("data.json").read_text())

def load_dataset(path, name=None, split=None, streaming=False, **_):
    found = {part: datasets.Dataset.from_list(rows[name]) for part, rows in SETS.items()}
    if streaming:
        found = {part: rows.to_iterable_dataset() for part, rows in found.items()}
    return found[split] if split else found

datasets.load_dataset = load_dataset

if not torch.accelerator.is_available():  # TRL's RewardConfig asks for a GPU that has bfloat16
    begin = trl.RewardConfig.__post_init__
    def on_cpu(self):
        if type(self) is trl.RewardConfig:
            self.use_cpu = True
        begin(self)
    trl.RewardConfig.__post_init__ = on_cpu

@pytest.fixture
def lazy_shared_datadir():
    return pathlib.Path("data").resolve()
"""
UTILS = """
import pytest

class TrlTestCase:
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.tmp_dir = str(tmp_path)

def __getattr__(name):
    if name.startswith("require_"):
        return lambda test: test
    raise AttributeError(name)
"""


def outcomes(folder: Path, name: str, text: str, choose: list[str]) -> dict:
    "{test: '' where it passed, else what went wrong}."
    package = folder / name
    package.mkdir()
    for file, content in (("__init__.py", ""), ("testing_utils.py", UTILS), ("test_reward_trainer.py", text)):
        (package / file).write_text(content)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short",
               f"--rootdir={folder}", f"--junitxml={folder / name}.xml", f"--basetemp={folder / 'runs'}",
               *choose, name]  # fmt: skip
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with open(folder / f"{name}.log", "w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest did not run:\n{(folder / f'{name}.log').read_text()[-3000:]}")
    found = {}
    for case in ElementTree.parse(f"{folder / name}.xml").iter("testcase"):
        wrong = [part for part in case if part.tag in ("failure", "error", "skipped")]
        said = " ".join(wrong[0].get("message", wrong[0].tag).split()) if wrong else ""
        found[case.get("name")] = re.split(r"(?<=.) (?:\+ )?(?:assert|where|At index|Emitted) ", said)[0][
            :160
        ]
    return found


def main(args) -> None:
    found = fetched(args.source, args.version)
    text = found[FILE]
    if text.count(IMPORT) != 1:
        raise ValueError(f"the tests have no {IMPORT!r} any more: look at them, and change IMPORT")
    ours = text.replace(IMPORT, IMPORT.replace("trl", "reward_kit"))
    changed, reasons = rewritten(ours)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(args.keep or work).resolve()
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "template.jinja").write_text(found[TEMPLATE])
        (folder / "conftest.py").write_text(CONFTEST)
        make_models(text, folder)
        make_data(folder)
        choose = ["-k", args.k] if args.k else []
        suites = {"theirs": text, "as_it_is": ours, "rewritten": changed}
        runs = {name: outcomes(folder, name, suite, choose) for name, suite in suites.items()}
    shown = lambda problem: problem.replace("|", "\\|").replace("<", "&lt;") if problem else "passes"
    rows = []
    for test in runs["theirs"]:
        why = reasons.get(test.partition("[")[0], [])
        last = runs["rewritten"][test]
        rows.append([test, *(shown(runs[name][test]) for name in ("theirs", "as_it_is")),
                     shown(last) if why or last else "", " ".join(filter(None, why))])  # fmt: skip
    passed = {name: f"{Counter(run.values())['']} of {len(run)}" for name, run in runs.items()}
    version = found.get("VERSION", "?").strip()
    head = (
        f"TRL's tests of its reward trainer (version {version}, {found['commit']}), with models and data "
        f"made here. TRL's own trainer passes {passed['theirs']}; ours {passed['as_it_is']} as they are, and "
        f"{passed['rewritten']} with the expectations that are rewritten for the reasons beside."
    )
    columns = ["test", "TRL's trainer", "ours, as it is", "ours, rewritten", "reason of the rewrite"]
    publish("\n".join([head, "", *table(columns, rows), "", versions_line(1)]), args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", default="1.16.0", help="of TRL, whose tests are run")
    parser.add_argument(
        "--source", type=Path, help="a checkout, a git directory or an archive of TRL's repository"
    )
    parser.add_argument("--keep", type=Path, help="a new folder to leave tests, models and logs in")
    parser.add_argument("-k", help="which tests, as pytest has it")
    parser.add_argument("--output", type=Path, help="Markdown file")
    main(parser.parse_args())
