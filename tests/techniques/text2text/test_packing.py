"""Packed rows against padded ones: the same losses and gradients, and no token sees another pair's."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    ByT5Tokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MT5Config,
    MT5ForConditionalGeneration,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.text2text import Text2Text, TextPairCollator, pack_aware
from hf_ft_plugins.techniques.text2text.packing import Flattener, packed_rows, row_caps
from hf_ft_plugins.techniques.text2text.segments import refuse_leaks
from hf_ft_plugins.testing import check_technique
from hf_ft_plugins.testing.examples.text2text import EXAMPLE, tiny_pairs, tiny_t5

TOKENIZER = ByT5Tokenizer()
torch.set_num_threads(1)
LONGEST = 12
T5_SIZE = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
# As many positions as the longest pair needs: packed rows are longer.
BART_SIZE = {"d_model": 16, "max_position_embeddings": LONGEST, "decoder_start_token_id": 0, "pad_token_id": 0}
BART_SIZE |= {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
BART_SIZE |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.0, "attention_dropout": 0.0}
LLAMA_SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "t5": (T5ForConditionalGeneration, T5Config, {**T5_SIZE, "decoder_start_token_id": 0}),
    "mt5": (MT5ForConditionalGeneration, MT5Config, {**T5_SIZE, "decoder_start_token_id": 0}),
    "bart": (BartForConditionalGeneration, BartConfig, BART_SIZE),
    "marian": (MarianMTModel, MarianConfig, {**BART_SIZE, "decoder_vocab_size": 384}),
    "llama": (LlamaForCausalLM, LlamaConfig, LLAMA_SIZE),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2}),
}
ENCODER_DECODERS = ("t5", "mt5", "bart", "marian")
on_all = pytest.mark.parametrize("kind", ENCODER_DECODERS)
on_both = pytest.mark.parametrize("attention", ["eager", "sdpa"])


def tiny(kind, attention="sdpa"):
    model_class, config_class, size = MODELS[kind]
    config = config_class(vocab_size=384, attn_implementation=attention, **size)
    torch.manual_seed(0)
    model = model_class(config).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            # Weights as large as trained ones, so that what leaks shows.
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    return model


def some_pairs(number=24, seed=0):
    random = np.random.default_rng(seed)
    return [
        {
            "input_ids": random.integers(3, 384, length[0]).tolist(),
            "labels": random.integers(3, 384, length[1]).tolist(),
        }
        for length in random.integers(1, LONGEST + 1, (number, 2))
    ]


def loss_and_gradients(model, batch, shift=False):
    """The mean over real tokens, in the model's precision, and all gradients as one vector."""
    model.zero_grad()
    batch = dict(batch)
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def difference(first, second):
    """The larger of the relative differences of the loss and of the gradient."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(first, second, strict=True))


def leaky(batch):
    """The same rows with the one mask that says where padding is."""
    batch = dict(batch)
    segments = {side: batch.pop(f"{side}_segment_ids") for side in ("encoder", "decoder")}
    for side in segments:
        batch.pop(f"{side}_position_ids")
    return batch | {"attention_mask": (segments["encoder"] > 0).long()}


# ---- rows ----


def test_rows_hold_every_pair_once_under_their_caps_and_little_else():
    random = np.random.default_rng(0)
    source = random.lognormal(3, 0.6, 500).astype(int) + 1
    target = np.maximum(1, (source * random.lognormal(-1, 0.3, 500)).astype(int))
    caps = row_caps(source, target, 10)
    rows = packed_rows(source, target, *caps)
    assert sorted(np.concatenate(rows)) == list(range(500))
    assert all(source[row].sum() <= caps[0] and target[row].sum() <= caps[1] for row in rows)
    assert source.sum() > 0.9 * caps[0] * len(rows)
    assert target.sum() > 0.9 * caps[1] * len(rows)
    assert all(np.array_equal(a, b) for a, b in zip(rows, packed_rows(source, target, *caps), strict=True))


def test_a_pair_beyond_a_cap_widens_both():
    rows = packed_rows(np.array([20, 5, 5]), np.array([2, 5, 5]), 10, 5)
    assert [row.tolist() for row in rows] == [[0], [1, 2]]
    assert packed_rows(np.array([], int), np.array([], int), 4, 4) == []


def test_a_packed_batch_holds_the_padded_ones_tokens_segment_by_segment():
    pairs, model = some_pairs(), pack_aware(tiny("bart"))
    model.config.decoder_start_token_id = 2
    batch = TextPairCollator(TOKENIZER, model, packing="pairs", pad_to_multiple_of=8)(pairs)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert all(tensor.shape[1] % 8 == 0 for tensor in batch.values())
    assert len(batch["labels"]) < len(pairs) / 3
    found = []
    for row in range(len(batch["labels"])):
        for segment in range(1, int(batch["encoder_segment_ids"][row].max()) + 1):
            here, there = (batch[f"{side}_segment_ids"][row] == segment for side in ("encoder", "decoder"))
            labels = batch["labels"][row][there].tolist()
            found.append({"input_ids": batch["input_ids"][row][here].tolist(), "labels": labels})
            assert batch["decoder_input_ids"][row][there].tolist() == [2, *labels[:-1]]
            assert batch["encoder_position_ids"][row][here].tolist() == list(range(int(here.sum())))
            assert batch["decoder_position_ids"][row][there].tolist() == list(range(int(there.sum())))
    assert sorted(map(str, found)) == sorted(map(str, pairs))
    padding = batch["decoder_segment_ids"] == 0
    assert set(batch["labels"][padding].tolist()) == {-100}
    assert -100 not in torch.cat([batch["input_ids"].flatten(), batch["decoder_input_ids"].flatten()])


# ---- exactness ----


@on_all
@on_both
def test_packed_loss_and_gradients_are_the_padded_ones(kind, attention):
    model, pairs = tiny(kind, attention), some_pairs()
    names = list(model.state_dict())
    expected = loss_and_gradients(model, TextPairCollator(TOKENIZER, model)(pairs))
    pack_aware(pack_aware(model))
    assert list(model.state_dict()) == names
    packed = TextPairCollator(TOKENIZER, model, packing="pairs")(pairs)
    assert difference(loss_and_gradients(model, packed), expected) <= 1e-12
    assert difference(loss_and_gradients(model, TextPairCollator(TOKENIZER, model)(pairs)), expected) == 0
    if kind in ("t5", "mt5"):
        control = loss_and_gradients(model, leaky(packed))
    else:
        # These have no positions for such long rows: one mask is replaced, positions restart.
        one_segment = {key: (value > 0).long() for key, value in packed.items() if key.endswith("segment_ids")}
        control = loss_and_gradients(model, packed | one_segment)
    assert difference(control, expected) > 1e-3


@on_all
@on_both
def test_a_pair_does_not_see_the_others(kind, attention):
    model = pack_aware(tiny(kind, attention)).eval()
    batch = TextPairCollator(TOKENIZER, model, packing="pairs")(some_pairs())
    changed = batch["encoder_segment_ids"] == 1
    changed[1:] = False
    others = batch["decoder_segment_ids"] > 0
    others[0] &= batch["decoder_segment_ids"][0] != 1
    other_source = batch | {"input_ids": torch.where(changed, (batch["input_ids"] + 1) % 384, batch["input_ids"])}
    together = {name: (value > 0).long() for name, value in batch.items() if name.endswith("segment_ids")}

    @torch.no_grad()
    def moved(**instead):
        first, second = (model(**{**rows, **instead}).logits for rows in (batch, other_source))
        return float((first - second)[others].abs().max()), float((first - second).abs().max())

    assert moved()[0] <= 1e-15
    assert moved()[1] > 1e-3, "nothing was changed"
    assert moved(**together)[0] > 1e-3, "the control does not leak"


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_packing_survives_checkpointed_gradients_copies_and_modes(kind, reentrant):
    pairs, model = some_pairs(), tiny(kind)
    expected = loss_and_gradients(model, TextPairCollator(TOKENIZER, model)(pairs))
    model = pickle.loads(pickle.dumps(copy.deepcopy(pack_aware(model)).eval().train()))
    batch = TextPairCollator(TOKENIZER, model, packing="pairs")(pairs)
    assert difference(loss_and_gradients(model, batch), expected) <= 1e-12
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    assert difference(loss_and_gradients(model, batch), expected) <= 1e-12


@on_all
def test_packing_goes_with_adapters(kind):
    pairs = some_pairs()
    layers = ["q", "v"] if kind in ("t5", "mt5") else ["q_proj", "v_proj"]
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=layers, init_lora_weights=False)
    model = peft.get_peft_model(tiny(kind), config).double()
    expected = loss_and_gradients(model, TextPairCollator(TOKENIZER, model)(pairs))
    batch = TextPairCollator(TOKENIZER, pack_aware(model), packing="pairs")(pairs)
    assert difference(loss_and_gradients(model, batch), expected) <= 1e-12
    assert (
        difference(
            loss_and_gradients(model, batch | {"encoder_segment_ids": batch["encoder_segment_ids"].clamp(max=1)}),
            expected,
        )
        > 1e-3
    )


# ---- causal models ----


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@on_both
def test_flattened_loss_and_gradients_are_the_padded_ones(kind, attention, monkeypatch):
    softmax = torch.nn.functional.softmax
    # Llama's eager attention rounds its softmax to float32, and rows of another width otherwise.
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    model, pairs = tiny(kind, attention), some_pairs()
    pairs[3]["input_ids"] = []
    flat = TextPairCollator(TOKENIZER, model, packing="flatten")(pairs)
    assert set(flat) == {"input_ids", "position_ids", "labels"}
    padded = TextPairCollator(TOKENIZER, model)(pairs)
    expected = loss_and_gradients(model, padded, shift=True)
    assert difference(loss_and_gradients(model, flat, shift=True), expected) <= 1e-12
    assert (flat["labels"][:, 1:] >= 0).sum() == (padded["labels"][:, 1:] >= 0).sum()
    # All that Trainer may count: a first label, which nothing predicts, is not among them.
    assert (flat["labels"] >= 0).sum() == (padded["labels"][:, 1:] >= 0).sum()
    running = flat | {"position_ids": torch.arange(flat["labels"].shape[1])[None]}
    assert difference(loss_and_gradients(model, running, shift=True), expected) > 1e-3


def test_flattened_batches_are_those_of_the_stock_collator():
    rows = [{"input_ids": [5, 6, 7, 1], "labels": [5, 6, 7, 1]}, {"input_ids": [8, 1], "labels": [-100, 1]}]
    model = tiny("llama")
    model.config._attn_implementation = "flash_attention_2"
    ours = TextPairCollator(TOKENIZER, model, packing="flatten")(rows)
    stock = dict(DataCollatorWithFlattening(return_flash_attn_kwargs=True)(rows))
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        assert torch.equal(torch.as_tensor(ours[name]), torch.as_tensor(value)), name
        assert getattr(ours[name], "dtype", None) == getattr(value, "dtype", None), name
    padded = TextPairCollator(TOKENIZER, model, packing="flatten", pad_to_multiple_of=4)(rows)
    assert padded["input_ids"].tolist() == [[5, 6, 7, 1, 8, 1, 0, 0]]
    assert padded["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert padded["labels"].tolist() == [[-100, 6, 7, 1, -100, 1, -100, -100]]
    assert padded["cu_seq_lens_q"].tolist() == [0, 4, 6, 8]


def test_a_causal_model_that_mixes_sequences_is_refused():
    model = tiny("llama")
    refuse_leaks(model, Flattener())
    assert model.training
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=384, hidden_size=16, num_hidden_layers=1, state_size=4))
    recurrent.config._attn_implementation = "eager"
    with pytest.raises(PluginError, match="leaks in MambaForCausalLM"):
        refuse_leaks(recurrent, Flattener())


# ---- refusals ----


def collating(model, packing):
    return TextPairCollator(TOKENIZER, model, packing=packing)


def test_what_has_not_been_tested_is_refused_by_name():
    config = M2M100Config(vocab_size=384, **BART_SIZE)
    with pytest.raises(
        PluginError, match=r"not been tested with M2M100ForConditionalGeneration \(model type 'm2m_100'"
    ):
        pack_aware(M2M100ForConditionalGeneration(config))
    flash = tiny("bart")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(PluginError, match="not with 'flash_attention_2'"):
        pack_aware(flash)
    prompted = peft.get_peft_model(tiny("t5"), peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2))
    with pytest.raises(PluginError, match="prompt and prefix tuning"):
        pack_aware(prompted)


def test_packing_for_the_other_architecture_and_unprepared_models_is_refused():
    with pytest.raises(PluginError, match="packing='pairs' is not for a causal model: use packing='flatten'"):
        collating(tiny("llama"), "pairs")
    with pytest.raises(PluginError, match="packing='flatten' is not for an encoder-decoder: use packing='pairs'"):
        collating(tiny("t5"), "flatten")
    with pytest.raises(PluginError, match=r"Pass pack_aware\(model\)"):
        collating(tiny("t5"), "pairs")


def test_pairs_that_cannot_be_packed_are_named():
    collate = collating(pack_aware(tiny("bart")), "pairs")
    with pytest.raises(PluginError, match="13 tokens, and the model has 12 positions"):
        collate([{"input_ids": [5] * 13, "labels": [1]}])
    with pytest.raises(PluginError, match="the source of pair 1"):
        collate([{"input_ids": [5], "labels": [1]}, {"input_ids": [], "labels": [1]}])


# ---- the technique ----


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def new_trainer(folder, technique, model=None, rows=None, collator=None, **changes):
    model = model or without_dropout(tiny_t5())
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 6, "logging_steps": 1}
    settings |= {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no", "report_to": "none", "use_cpu": True}
    own = changes.pop("model_init", None)
    return with_plugins(Seq2SeqTrainer, technique)(
        model=None if own else model,
        model_init=own,
        args=Seq2SeqTrainingArguments(output_dir=str(folder), disable_tqdm=True, **(settings | changes)),
        data_collator=collator or DataCollatorForSeq2Seq(TOKENIZER, model),
        train_dataset=rows or tiny_pairs(48),
        eval_dataset=tiny_pairs(8, seed=1),
        processing_class=TOKENIZER,
    )


def losses(trainer):
    trainer.train()
    log = trainer.state.log_history
    return [entry[key] for entry in log for key in ("loss", "eval_loss", "grad_norm") if key in entry]


@pytest.mark.parametrize(("packing", "kind"), [("pairs", None), ("flatten", "llama")])
def test_a_packed_run_has_the_losses_of_an_unpacked_one(packing, kind, tmp_path):
    def run(technique):
        trainer = new_trainer(tmp_path, technique, model=tiny(kind).float() if kind else None)
        assert trainer.eval_collator.packing == "none"
        return losses(trainer), next(iter(trainer.get_train_dataloader()))

    (packed, rows), (padded, apart) = run(Text2Text(packing=packing)), run(Text2Text())
    assert len(packed) == 14
    assert packed == pytest.approx(padded, rel=1e-5)
    assert len(rows["labels"]) == 1 < len(apart["labels"])


def test_a_packed_run_resumes_exactly_and_its_parts_pickle(tmp_path):
    technique = Text2Text(packing="pairs", target_tokens=24)
    check_technique(replace(EXAMPLE, technique=technique), tmp_path)


def test_a_run_that_could_not_pack_is_refused_before_it_trains(tmp_path):
    with pytest.raises(PluginError, match="packing='flatten' is not for an encoder-decoder"):
        new_trainer(tmp_path, "text2text:packing=flatten")
    with pytest.raises(PluginError, match="packing='pairs' is not for a causal model"):
        new_trainer(tmp_path, "text2text:packing=pairs", model=tiny("llama"))
    with pytest.raises(PluginError, match="no effect on the script's own collator, TextPairCollator"):
        new_trainer(tmp_path, "text2text:packing=pairs", collator=TextPairCollator(TOKENIZER, tiny_t5()))
    with pytest.raises(PluginError, match="model_init makes another"):
        new_trainer(tmp_path, "text2text:packing=pairs", model_init=lambda: tiny_t5())
    rows = [{"input_ids": [5] * 13, "labels": [1]}] * 4
    with pytest.raises(PluginError, match="13 tokens, and the model has 12 positions"):
        new_trainer(tmp_path, "text2text:packing=pairs", model=tiny("bart"), rows=rows)
