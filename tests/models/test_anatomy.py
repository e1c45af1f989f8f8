"""The one reader of a model on architectures of every kind; what it must find is counted by hand."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.memory.fewer_layers import kinds_of, trial_depths
from hf_ft_plugins.memory.trial_run import QUANTISED, _quantised
from hf_ft_plugins.models.classes import class_of, encoder_class
from hf_ft_plugins.models.heads import head_names
from hf_ft_plugins.models.layers import layer_groups
from hf_ft_plugins.models.linear_layers import linear_layers_of_blocks
from hf_ft_plugins.models.stacks import all_stacks, block_stacks, text_stacks
from hf_ft_plugins.models.width import hidden_size, reads_forward
from hf_ft_plugins.techniques.peft import find_targets, quantize

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {**SMALL, "vocab_size": 99}
PICTURE = {**SMALL, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
LLAMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
HALVES = {
    **{"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "vocab_size": 99, "pad_token_id": 1},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}
FUNNEL = {"d_model": 32, "block_sizes": [1, 2], "num_decoder_layers": 2, "n_head": 4, "d_head": 8, "d_inner": 48}
SIGHT = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "out_hidden_size": 32}
# As many convolutions as layers: what tells of the one seems to tell of the other.
SOUND = {"conv_dim": (32,) * 3, "conv_kernel": (4,) * 3, "conv_stride": (2,) * 3, "num_conv_pos_embedding_groups": 2}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        stacks: by path the number of blocks, in the order in which an input goes through them.
        text: those that the text goes through; none: all.
        told: those whose depth the configuration tells; none: the text's.
        linear: layers in the text's blocks, counted by hand.
        width: of what it gives.
        head: the first part of its parameters' names; none: tied, or none.
    """

    settings: dict[str, Any]
    stacks: dict[str, int]
    linear: int
    head: str = ""
    text: tuple[str, ...] = ()
    told: tuple[str, ...] | None = None
    width: int | None = 32


ROWS = {
    # Texts. An encoder's block: query, key, value, output, and two of the feed-forward part; Llama's has three there.
    "BertForSequenceClassification": Row(TEXT, {"bert.encoder.layer": 3}, 3 * 6, "classifier"),
    "XLMForSequenceClassification": Row(
        {"emb_dim": 32, "n_layers": 3, "n_heads": 4, "n_words": 99}, {"transformer.ffns": 3}, 3 * 6, "sequence_summary"
    ),
    "FunnelForTokenClassification": Row(
        {**FUNNEL, "vocab_size": 99},
        {"funnel.encoder.blocks": 2, "funnel.decoder.layers": 2},
        (1 + 2 + 2) * 6,
        "classifier",
        told=("funnel.decoder.layers",),
    ),
    "GPT2LMHeadModel": Row({"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 99}, {"transformer.h": 3}, 3 * 4),
    "LlamaForCausalLM": Row(LLAMA, {"model.layers": 3}, 3 * 7, "lm_head"),
    # A decoder's block beside an encoder has four more.
    "T5ForConditionalGeneration": Row(
        {"d_model": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48},
        {"encoder.block": 2, "decoder.block": 3},
        2 * 6 + 3 * 10,
    ),
    "BartForConditionalGeneration": Row(HALVES, {"model.encoder.layers": 2, "model.decoder.layers": 3}, 2 * 6 + 3 * 10),
    "MarianMTModel": Row(HALVES, {"model.encoder.layers": 2, "model.decoder.layers": 3}, 2 * 6 + 3 * 10),
    "T5GemmaForConditionalGeneration": Row(
        {"encoder": {**LLAMA, "num_hidden_layers": 2}, "decoder": LLAMA},
        {"model.encoder.layers": 2, "model.decoder.layers": 3},
        2 * 7 + 3 * 11,
    ),
    # Pictures.
    "ViTForImageClassification": Row(PICTURE, {"vit.layers": 2}, 2 * 6, "classifier"),
    "ConvNextForImageClassification": Row(STAGES, {"convnext.encoder.stages": 4}, 5 * 2, "classifier"),
    "ResNetForImageClassification": Row(
        {**STAGES, "embedding_size": 8, "layer_type": "basic"}, {"resnet.encoder.stages": 4}, 0, "classifier", told=()
    ),
    "SwinForImageClassification": Row(
        {"embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "image_size": 32, "window_size": 4},
        {"swin.encoder.layers": 2},
        3 * 6 + 1,
        "classifier",
        width=16,
    ),
    "MobileNetV1ForImageClassification": Row(
        {"depth_multiplier": 0.25}, {"mobilenet_v1.layer": 26}, 0, "classifier", told=(), width=None
    ),
    # Sound.
    "Wav2Vec2ForCTC": Row(
        {**TEXT, **SOUND, "num_feat_extract_layers": 3}, {"wav2vec2.encoder.layers": 3}, 3 * 6, "lm_head"
    ),
    "SEWForCTC": Row(TEXT, {"sew.encoder.layers": 3}, 3 * 6, "lm_head"),
    "WhisperForConditionalGeneration": Row(
        HALVES, {"model.encoder.layers": 2, "model.decoder.layers": 3}, 2 * 6 + 3 * 10
    ),
    "Speech2TextForConditionalGeneration": Row(
        {**HALVES, "num_conv_layers": 2}, {"model.encoder.layers": 2, "model.decoder.layers": 3}, 2 * 6 + 3 * 10
    ),
    # Several modalities: those of the text are the last.
    "CLIPModel": Row(
        {"text_config": TEXT, "vision_config": PICTURE},
        {"vision_model.encoder.layers": 2, "text_model.encoder.layers": 3},
        3 * 6,
        text=("text_model.encoder.layers",),
    ),
    "LlavaForConditionalGeneration": Row(
        {
            "text_config": {"model_type": "llama", **LLAMA},
            "vision_config": {"model_type": "clip_vision_model", **PICTURE},
        },
        {"model.vision_tower.encoder.layers": 2, "model.language_model.layers": 3},
        3 * 7,
        "lm_head",
        ("model.language_model.layers",),
    ),
    "Qwen2_5_VLForConditionalGeneration": Row(
        {"text_config": LLAMA, "vision_config": {**SIGHT, "depth": 2}},
        {"model.visual.blocks": 2, "model.language_model.layers": 3},
        3 * 7,
        "lm_head",
        ("model.language_model.layers",),
    ),
    "Qwen3VLForConditionalGeneration": Row(
        {"text_config": LLAMA, "vision_config": {**SIGHT, "depth": 3, "deepstack_visual_indexes": [0, 1, 2]}},
        {"model.visual.blocks": 3, "model.language_model.layers": 3},
        3 * 7,
        "lm_head",
        ("model.language_model.layers",),
    ),
    "Kosmos2ForConditionalGeneration": Row(
        {
            "text_config": {"embed_dim": 32, "layers": 3, "attention_heads": 4, "ffn_dim": 48, "vocab_size": 99},
            "vision_config": PICTURE,
        },
        {"vision_model.model.encoder.layers": 2, "text_model.model.layers": 3},
        3 * 6,
        text=("text_model.model.layers",),
    ),
    "GitForCausalLM": Row(
        {**TEXT, "vision_config": {**PICTURE, "num_hidden_layers": 6}},
        {"git.image_encoder.vision_model.encoder.layers": 6, "git.encoder.layer": 3},
        3 * 6,
        "output",
        ("git.encoder.layer",),
    ),
    # Hybrids: of Jamba's eight one attends, the others are of Mamba, which has four linear layers, and each second is
    # of experts in one tensor.
    "JambaForCausalLM": Row(
        {**LLAMA, "num_hidden_layers": 8, "attn_layer_period": 8, "attn_layer_offset": 4, "mamba_dt_rank": 4},
        {"model.layers": 8},
        7 * 4 + 4 + 4 * 3,
        "lm_head",
    ),
    "ZambaForCausalLM": Row(
        {**TEXT, "num_hidden_layers": 8, "attn_layer_period": 4, "attn_layer_offset": 2, "n_mamba_heads": 2},
        {"model.layers": 8},
        8 * 2 + 2 * (4 + 3 + 1),
    ),
    "BambaForCausalLM": Row(
        {**LLAMA, "num_hidden_layers": 4, "attn_layer_indices": [2], "mamba_n_heads": 4, "mamba_d_head": 16},
        {"model.layers": 4},
        3 * 2 + 4 + 4 * 3,
        "lm_head",
    ),
    "MambaForCausalLM": Row(
        {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 99, "state_size": 4}, {"backbone.layers": 3}, 3 * 4
    ),
    # Mixtures of experts, which are tensors of three dimensions; routers are no linear layers.
    "MixtralForCausalLM": Row({**LLAMA, "num_local_experts": 4}, {"model.layers": 3}, 3 * 4, "lm_head"),
    "Qwen2MoeForCausalLM": Row(
        {**LLAMA, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 16},
        {"model.layers": 3},
        3 * (4 + 3 + 1),
        "lm_head",
    ),
    "DeepseekV3ForCausalLM": Row(
        {**TEXT, **EXPERTS, **LATENT, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
        {"model.layers": 3},
        3 * 5 + 3 + 2 * 3,
        "lm_head",
    ),
}


def built(name, **settings):
    cls = getattr(transformers, name)
    with torch.device("meta"):
        return cls(cls.config_class(**{**ROWS[name].settings, **settings}))


@pytest.mark.parametrize("name", ROWS)
def test_what_is_read_is_what_was_counted_by_hand(name):
    row, model = ROWS[name], built(name)
    assert [(stack.name, len(stack.blocks)) for stack in all_stacks(model)] == [*row.stacks.items()]
    text = row.text or tuple(row.stacks)
    assert tuple(stack.name for stack in text_stacks(model)) == text
    told = text if row.told is None else row.told
    if told:
        found = block_stacks(model, "t").values()
        assert tuple(stack.name for stack in found) == told
        assert all(getattr(stack.config, count) == stack.depth for stack in found for count in stack.counts)
    else:
        with pytest.raises(PluginError, match=r"^t: .*has no list of layers whose length its configuration tells"):
            block_stacks(model, "t")
    linear = [path for path, _ in linear_layers_of_blocks(model)]
    assert len(linear) == len(set(linear)) == row.linear
    assert {weight.partition(".")[0] for weight in head_names(model)} == ({row.head} - {""})
    if row.width is not None:
        assert hidden_size(model.config, "t") == row.width


@pytest.mark.parametrize("name", ROWS)
def test_layers_are_in_order_and_hold_every_parameter_once(name):
    row, model = ROWS[name], built(name)
    groups = layer_groups(model, "t", at_most=99)
    held = [parameter for group in groups for parameter in group.parameters]
    assert sorted(held) == sorted(parameter for parameter, _ in model.named_parameters())
    expected = [f"{path}.{number}" for path, depth in row.stacks.items() for number in range(depth)]
    if name.startswith("XLM"):
        expected = [f"transformer.attentions.{number}" for number in range(3)]
    assert [group.name for group in groups] == ["stem", *expected, *(["head"] if row.head else [])]
    for group in groups[1 : 1 + len(expected)]:
        # What a block is named after is in its group whole, and no other block.
        number = group.name.rpartition(".")[2]
        blocks = [path for path in group.modules if path.rpartition(".")[2].isdigit() and path != group.name]
        assert all(path.endswith(f".{number}") for path in blocks)


def test_blocks_that_are_spread_over_four_lists_are_one_group_each():
    groups = layer_groups(built("XLMForSequenceClassification"), "t")
    assert groups[1].modules == tuple(
        f"transformer.{name}.0" for name in ("attentions", "layer_norm1", "ffns", "layer_norm2")
    )


def test_a_tower_that_is_defined_behind_the_text_is_below_it():
    groups = {group.name: group for group in layer_groups(built("Kosmos2ForConditionalGeneration"), "t")}
    last = groups["vision_model.model.encoder.layers.1"].modules
    assert any(path.startswith("image_to_text_projection") for path in last)
    assert any(path.startswith("vision_model.model.embeddings") for path in groups["stem"].modules)


# ---- rules that are wrong, each of which a technique had ----


def lists(module, path=""):
    """Outermost lists of modules that have parts."""
    for name, child in module.named_children():
        inside = f"{path}.{name}" if path else name
        parts = any(any(True for _ in block.children()) for block in child.children())
        if isinstance(child, nn.ModuleList | nn.Sequential) and parts and size(child):
            yield inside, child
        else:
            yield from lists(child, inside)


def size(module):
    return sum(weight.numel() for weight in module.parameters())


def largest(model):
    return {max(lists(model), key=lambda pair: size(pair[1]), default=("", None))[0]}


def counted(model):
    text = model.config.get_text_config()
    depth = getattr(text, "num_hidden_layers", getattr(text, "encoder_layers", None))
    return {path for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth}


def large(model):
    return {path for path, part in lists(model) if size(part) >= 0.1 * size(model)}


@dataclass(frozen=True)
class Wrong:
    rule: Any
    fails: set[str]
    want: Any = field(default=lambda row: set(row.text or row.stacks))


WRONG = {
    "the largest list": Wrong(
        largest, {"GitForCausalLM", "FunnelForTokenClassification", "SEWForCTC", "BartForConditionalGeneration"}
    ),
    "each list that is as long as the configuration says": Wrong(
        counted,
        {"Wav2Vec2ForCTC", "Speech2TextForConditionalGeneration", "Qwen3VLForConditionalGeneration"}
        | {"ResNetForImageClassification", "XLMForSequenceClassification"},
    ),
    "each list with a tenth of the parameters": Wrong(
        large,
        {"XLMForSequenceClassification", "SEWForCTC"},
        lambda row: set(row.stacks),
    ),
}


@pytest.mark.parametrize("which", WRONG)
def test_other_rules_fail_on_these_rows(which):
    """The control of the table: it tells rules apart that agree on most architectures."""
    wrong = WRONG[which]
    for name in ("BertForSequenceClassification", "LlamaForCausalLM"):
        assert wrong.rule(built(name)) == wrong.want(ROWS[name])
    agree = {name for name in wrong.fails if wrong.rule(built(name)) == wrong.want(ROWS[name])}
    assert not agree


# ---- who reads it ----


def test_memory_counts_as_quantised_what_peft_quantises_and_adapts():
    pytest.importorskip("bitsandbytes")
    name = "LlavaForConditionalGeneration"
    meta, model = built(name), transformers.LlavaForConditionalGeneration(built(name).config)
    weights = [module.weight for _, module in linear_layers_of_blocks(meta)]
    saved, largest_layer = _quantised(meta, "int8")
    assert saved == sum(weight.numel() for weight in weights) * (4 - QUANTISED["int8"])
    assert largest_layer == 4 * 32 * 48
    assert find_targets(model).layers == quantize(model, "int8") == len(weights)
    everywhere = [module for module in meta.modules() if isinstance(module, nn.Linear)]
    assert len(everywhere) > len(weights) + 1, "the control: the tower and the projector have linear layers, too"


def kinds(name, **settings):
    return kinds_of(block_stacks(built(name, **settings), "t")[""])


def test_memory_tries_whole_periods_of_the_kinds_of_blocks():
    assert trial_depths(kinds("LlamaForCausalLM", num_hidden_layers=9), 2) == (2, 3)
    assert trial_depths(kinds("JambaForCausalLM", num_hidden_layers=32), 2) == (8, 16)
    # The first block is dense.
    assert trial_depths(kinds("DeepseekV3ForCausalLM", num_hidden_layers=9), 2) == (2, 3)
    assert trial_depths(kinds("DeepseekV3ForCausalLM", num_hidden_layers=9, first_k_dense_replace=3), 2) == (4, 5)
    # XLM's blocks are of four lists, of which each has its part in what a block is.
    assert len(set(kinds("XLMForSequenceClassification"))) == 1
    # Nothing repeats: it is run whole.
    assert trial_depths("abcdefgh", 2) is None
    # The control: two and three of Jamba's blocks have no attention.
    assert len(set(kinds("JambaForCausalLM", num_hidden_layers=32)[:3])) < len(set(kinds("JambaForCausalLM")))


def test_a_class_is_the_one_that_the_configuration_names():
    assert class_of(transformers.BertConfig(architectures=["BertForMaskedLM"])) is transformers.BertForMaskedLM
    assert class_of(transformers.BertConfig()) is transformers.AutoModelForCausalLM
    assert class_of(transformers.BertConfig(architectures=["Own"]), transformers.AutoModel) is transformers.AutoModel
    assert encoder_class(transformers.T5Config()) == "T5EncoderModel"
    assert encoder_class(transformers.BartConfig()) is None
    assert reads_forward(transformers.GPT2Config())
    assert not reads_forward(transformers.BertConfig())


def test_a_width_that_is_not_told_is_asked_for():
    with pytest.raises(
        PluginError, match=r"^t: the config of the encoder, a MobileNetV1Config, does not say its width"
    ):
        hidden_size(transformers.MobileNetV1Config(), "t")
