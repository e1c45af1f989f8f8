"""README and docs: what is generated is up to date, links lead somewhere, and every block of code works."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
import yaml

from hf_ft_plugins import registry
from hf_ft_plugins.cli.app import app
from hf_ft_plugins.techniques.sequential.script_stages import read_stages

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *DOCS]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Placeholders of the pages for files that a reader brings.
BROUGHT = {"train.py", "dpo.py", "export.json", "text.txt", "SCRIPT"}


def named(path):
    return str(path.relative_to(ROOT))


def blocks(language):
    return [
        pytest.param(page, code, id=f"{named(page)}:{number}")
        for page in PAGES
        for number, (kind, code) in enumerate(FENCE.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_is_generated_is_up_to_date(page):
    text = page.read_text(encoding="utf-8")
    assert generator().generated(text) == text, "run: python docs/generate.py"


def test_a_stale_block_is_written_anew():
    stale = "<!-- generated: options adaptive-lr -->\nold\n<!-- end -->\n"
    assert "| `patience` |" in generator().generated(stale)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files_and_headings_that_are_there(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)} links to {target}"
        if anchor:
            headings = [slug(heading) for heading in HEADING.findall(file.read_text(encoding="utf-8"))]
            assert anchor in headings, f"{named(page)} links to {target}"


def test_the_index_leads_to_every_page_scripts_first():
    index = ROOT / "docs" / "README.md"
    linked = [(index.parent / target).resolve() for target in LINK.findall(index.read_text(encoding="utf-8"))]
    # Each code's page is in the index of their own folder.
    codes = {page for page in DOCS if page.parent.name == "errors" and page.name != "README.md"}
    assert set(DOCS) - {index} - codes <= set(linked)
    assert linked[0] == ROOT / "README.md"
    assert linked[1] == ROOT / "docs" / "guide" / "scripts.md"


def slug(heading):
    """A heading's anchor, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_python_blocks_run(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What a reader has is there; what a page's earlier blocks made is, too.
    names = surroundings(tmp_path, page)
    for earlier in FENCE.findall(page.read_text(encoding="utf-8").partition(code)[0]):
        if earlier[0] == "python":
            exec(compile(earlier[1], named(page), "exec"), names)
    before = set(names)
    exec(compile(code, named(page), "exec"), names)
    assert set(names) >= before, "a block of a page takes nothing away"


def surroundings(folder, page):
    """The variables and files that a reader of the page has."""
    import transformers

    from hf_ft_plugins.testing import tiny_dataset, tiny_model, tiny_trainer

    names = {"train_dataset": tiny_dataset(), "encoder": tiny_model()}
    names["trainer"] = tiny_trainer(folder / "run", trainer_class=transformers.Trainer)
    more = {
        "behavioral": with_a_log,
        "feedback": with_a_log,
        "layer-removal": with_text,
        "multitask": with_trees,
        "sequential": with_two_texts,
    }
    return names | more.get(page.stem, dict)()


def with_text():
    import torch

    from hf_ft_plugins.testing.examples.behavioral import tiny_llama

    ids = torch.randint(3, 60, (8, 12))
    return {"model": tiny_llama(num_hidden_layers=6), "batches": [{"input_ids": ids, "labels": ids}]}


def with_two_texts():
    import torch

    from hf_ft_plugins.testing.examples.behavioral import tiny_llama

    tiny_llama().save_pretrained("base-model")
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(3, 60, (40, 12)).tolist()]
    return {"books": rows[:16], "held_out_books": rows[16:20], "medical": rows[20:36], "held_out_medical": rows[36:]}


def with_a_log():
    import trl
    from transformers import AutoModelForCausalLM

    from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

    lines = []
    for one in range(60):
        asked = {"table": "message", "id": f"{one}", "role": "user", "content": f"What is {one} and {one}?"}
        lines.append(asked)
        for name, answer in (("good", f"It is {2 * one}."), ("bad", "I would rather not say it.")):
            message = {"table": "message", "id": f"{one}.{name}", "parent_id": f"{one}", "role": "assistant"}
            event = {"table": "event", "id": f"{one}.{name}.thumbs", "message_id": f"{one}.{name}", "type": "thumbs"}
            lines += [message | {"content": answer}, event | {"value": 1 if name == "good" else -1, "user": f"{one}"}]
    Path("export.json").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tiny_llama().save_pretrained("chat-model")
    tiny_tokenizer().save_pretrained("chat-model")
    return {
        "model": AutoModelForCausalLM.from_pretrained("chat-model"),
        "args": trl.DPOConfig("run", report_to="none", use_cpu=True, bf16=False),
    }


def with_trees():
    from transformers import BertConfig, BertModel, TrainingArguments

    from hf_ft_plugins.testing.examples.multitask import tiny_tagged, tiny_tokenizer

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=64, **size)).save_pretrained("bert-base-cased")
    tiny_tokenizer().save_pretrained("bert-base-cased")
    rows = [row | {"upos": row["tag"], "ner": ["B-PER", *["O"] * (len(row["tag"]) - 1)]} for row in tiny_tagged()]
    return {"train_dataset": rows, "args": TrainingArguments("run", report_to="none", use_cpu=True)}


@pytest.mark.parametrize(("page", "code"), blocks("yaml"))
def test_recipes_name_techniques_and_options_that_are_there(page, code, tmp_path):
    recipe = yaml.safe_load(code)
    assert [registry.resolve(spec) for spec in recipe["techniques"]]
    if "stages" in recipe:
        (tmp_path / "recipe.yaml").write_text(code, encoding="utf-8")
        assert len(read_stages(tmp_path / "recipe.yaml")[1]) == len(recipe["stages"])


def commands(code):
    """The arguments of each `hf-ft` in a block, however it is started."""
    found = []
    for line in code.replace("\\\n", " ").replace("&&\n", "&& ").splitlines():
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            for name in {"hf-ft", "hf_ft_plugins"} & set(words):
                found.append(words[words.index(name) + 1 :])
    return found


@pytest.mark.parametrize(("page", "code"), blocks("bash"))
def test_command_lines_parse_and_name_what_is_there(page, code):
    for arguments in commands(code):
        check_command(typer.main.get_command(app), arguments)


def check_command(group, arguments):
    name, *rest = arguments
    command = group.get_command(SimpleNamespace(resilient_parsing=False), name)
    assert command is not None, arguments
    if hasattr(command, "commands"):
        check_command(command, rest)
        return
    context = command.make_context(name, [word for word in rest if word != "..."])
    for spec in context.params.get("with_") or ():
        registry.resolve(spec)
    script = context.params.get("script")
    if script is not None and not context.params["as_module"]:
        assert script in BROUGHT or (ROOT / script).is_file(), arguments
    recipe = context.params.get("recipe")
    if name == "stages":
        assert read_stages(ROOT / recipe), arguments


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("hf-ft run --with peft:rank=3 train.py", "unknown option 'rank'"),
        ("hf-ft run --with peft other.py", "other.py"),
        ("hf-ft show --with peft", "No such option"),
        ("hf-ft fly", "fly"),
    ],
)
def test_wrong_command_lines_are_noticed(line, why):
    with pytest.raises(Exception, match=why):
        check_command(typer.main.get_command(app), commands(line)[0])
