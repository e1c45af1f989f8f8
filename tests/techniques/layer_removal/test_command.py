"""`hf-ft layer-removal curve`: scores and curve of a model's folder, and what it says of input that it cannot use."""

import gzip
import json

import pytest
import torch
import transformers
from typer.testing import CliRunner

from hf_ft_plugins.cli.app import app
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.layer_removal import command, curve
from hf_ft_plugins.testing import tiny_model
from hf_ft_plugins.testing.examples.behavioral import tiny_llama, tiny_tokenizer

LINES = [f"the {color} bird sings of {thing} and of the {color} hill" for color in ("red", "blue") for thing in "abcd"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = tiny_llama(num_hidden_layers=5)
    with torch.no_grad():
        # A layer that does nothing.
        model.model.layers[3].self_attn.o_proj.weight.zero_()
        model.model.layers[3].mlp.down_proj.weight.zero_()
    models = {"writer": model, "encoder": tiny_model()}
    models["encoder"].resize_token_embeddings(384)
    size = {"d_model": 16, "encoder_layers": 4, "decoder_layers": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 384, "pad_token_id": 0}
    models["translator"] = transformers.BartForConditionalGeneration(transformers.BartConfig(**size, **heads))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    (folder / "text.txt").write_text("\n\n".join(LINES))
    with gzip.open(folder / "pairs.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"en": line, "fr": line[::-1]}) + "\n" for line in LINES)
    return folder


def run(*words):
    return CliRunner().invoke(app, ["layer-removal", "curve", *map(str, words)])


def test_it_shows_what_each_layer_does_and_draws_the_curve(folder, tmp_path):
    words = (folder / "writer", "--data", folder / "text.txt", "--out", tmp_path / "new")
    shown = run(*words, "--json")
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["scores"]["block_influence"][3] == pytest.approx(0, abs=1e-6)
    assert len(found["scores"]["loss"]) == 5
    assert [point["removed"] for point in found["curve"]] == [0, 1, 2]
    assert (tmp_path / "new" / "layer_removal_curve.png").stat().st_size > 10_000
    told = run(*words, "--method", "block_influence", "--most", "1").output
    assert "--with layer-removal:layers=3 SCRIPT" in told


def test_the_curve_is_measured_on_other_rows_than_layers_are_chosen_by(folder, tmp_path, monkeypatch):
    measure, seen = curve.measure_curve, {}

    def measured(model, batches, *, held_out, **settings):
        seen.update(chosen_by=batches, held_out=held_out)
        return measure(model, batches, held_out=held_out, **settings)

    monkeypatch.setattr(curve, "measure_curve", measured)
    monkeypatch.setattr(command, "BATCH", 2)
    command.examine(str(folder / "writer"), folder / "text.txt", rows=4, out=tmp_path)
    rows = [{tuple(row) for batch in batches for row in batch["input_ids"].tolist()} for batches in seen.values()]
    assert len(rows[0]) == len(rows[1]) == 4
    assert not rows[0] & rows[1]


def test_of_an_encoder_it_shows_how_much_layers_turn(folder, tmp_path):
    shown = run(folder / "encoder", "--data", folder / "text.txt", "--max-length", "8", "--out", tmp_path)
    assert shown.exit_code == 0, shown.output
    assert "gives no loss of plain text" in shown.output


def test_of_an_encoder_decoder_it_needs_pairs(folder, tmp_path):
    words = (folder / "translator", "--data", folder / "pairs.jsonl.gz", "--column", "en", "--out", tmp_path)
    assert "--target-column" in str(run(*words).exception)
    shown = run(*words, "--target-column", "fr", "--json")
    assert shown.exit_code == 0, shown.output
    assert len(json.loads(shown.stdout)["curve"]) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["writer"], "--data FILE"),
        (["writer", "--data", "nowhere.txt"], "is no file"),
        (["writer", "--data", "empty.txt"], "holds no text"),
        (["writer", "--data", "short.txt"], "no row of --data has 8 tokens"),
        (["writer", "--data", "pairs.jsonl.gz"], "there is no column 'text'; there are en, fr"),
        (["nowhere", "--data", "text.txt"], "MODEL=.* has no configuration and tokenizer"),
    ],
)
def test_what_cannot_be_used_is_said(words, said, folder):
    (folder / "empty.txt").write_text("\n\n")
    (folder / "short.txt").write_text("hi\n")
    model, *rest = words
    rest = [word if word.startswith("-") else folder / word for word in rest]
    failed = run(folder / model, *rest)
    assert isinstance(failed.exception, PluginError)
    with pytest.raises(PluginError, match=said):
        raise failed.exception
