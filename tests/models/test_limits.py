"""How many tokens a model takes: the reference is the longest row that the bare tiny model takes, found by trying."""

import pytest
import torch
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DebertaV2Model,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FalconConfig,
    FalconModel,
    GPT2Config,
    GPT2LMHeadModel,
    LEDConfig,
    LEDModel,
    RobertaConfig,
    RobertaModel,
    TapasConfig,
    TapasModel,
    WhisperConfig,
    WhisperModel,
)

from benchmarks.architectures import small, takes
from hf_ft_plugins.models.limits import longest_input
from hf_ft_plugins.techniques.multitask import MultiTaskModel, TaskSpec

POSITIONS = 40
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 99}
SEQ2SEQ = {
    "vocab_size": 99,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 8,
    "decoder_ffn_dim": 8,
}

# Another count than the config's, or another place of the table.
# fmt: off
WITH_TABLE = [
    "roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text", "ibert", "esm", "luke", "xmod",
    "markuplm", "big_bird", "bert", "distilbert", "electra", "albert", "nystromformer", "mra", "yoso", "gpt2",
    "gpt_neo", "gptj", "openai-gpt", "ctrl", "bart", "mbart", "opt", "biogpt", "marian", "roformer", "xlm",
    "flaubert", "canine", "deberta", "reformer", "mpt", "clip_text_model", "tipsv2_text_model"
]
# fmt: on
GROWING = ["m2m_100", "nllb-moe", "xglm", "fsmt"]
RELATIVE = ["t5", "mt5", "umt5", "longt5", "xlnet", "bloom", "funnel", "mamba"]
TRAINED = ["llama", "modernbert", "prophetnet", "tapas"]


def longest_taken(model, most: int = 2 * POSITIONS) -> int:
    return max(length for length in range(1, most + 1) if takes(model, length))


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("kind", ["roberta", "mpnet", "bart", "bert", "esm"])
def test_the_padding_index_moves_the_first_position_of_some(kind, padding):
    model = small(kind, POSITIONS, padding)
    assert longest_input(model) == longest_taken(model, POSITIONS + 4)


@pytest.mark.parametrize("kind", WITH_TABLE)
def test_a_table_takes_what_was_found_by_trying(kind):
    model = small(kind, POSITIONS)
    limit = longest_input(model)
    assert takes(model, limit)
    assert not takes(model, limit + 1)


@pytest.mark.parametrize("kind", [*GROWING, *RELATIVE])
def test_nothing_limits_growing_tables_and_relative_positions(kind):
    model = small(kind, POSITIONS)
    assert takes(model, 2 * POSITIONS + 1)
    assert longest_input(model) is None


@pytest.mark.parametrize("kind", TRAINED)
def test_a_model_that_runs_beyond_is_held_to_the_length_that_it_was_trained_for(kind):
    model = small(kind, POSITIONS)
    assert takes(model, POSITIONS + 1)
    assert longest_input(model) == POSITIONS


def test_the_configs_number_would_be_wrong():
    """The control of this file: what was read before."""
    model = small("roberta", POSITIONS)
    assert model.config.max_position_embeddings == POSITIONS
    assert not takes(model, POSITIONS)


def test_positions_that_an_option_of_the_config_decides():
    relative = DebertaV2Model(
        DebertaV2Config(
            **SMALL, max_position_embeddings=POSITIONS, position_biased_input=False, relative_attention=True
        )
    )
    assert takes(relative, POSITIONS + 1)
    assert longest_input(relative) == POSITIONS
    absolute = TapasModel(TapasConfig(**SMALL, max_position_embeddings=POSITIONS, reset_position_index_per_cell=False))
    assert longest_input(absolute) == longest_taken(absolute.eval()) == POSITIONS
    sizes = {"vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    assert longest_input(FalconModel(FalconConfig(**sizes, alibi=True))) is None


@pytest.mark.parametrize("window", [8, [8]])
def test_an_encoder_that_fills_its_last_window(window):
    model = LEDModel(
        LEDConfig(**SEQ2SEQ, max_encoder_position_embeddings=POSITIONS + 3, attention_window=window)
    ).eval()
    assert longest_input(model) == longest_taken(model) == POSITIONS


def test_heads_and_wrappers_have_the_limit_of_their_encoder():
    encoder = RobertaModel(RobertaConfig(**SMALL, max_position_embeddings=POSITIONS, pad_token_id=1))
    model = MultiTaskModel.from_encoder(encoder, {"tag": TaskSpec(kind="token", labels=("A", "B"))})
    assert longest_input(model) == longest_input(encoder) == POSITIONS - 2
    classifier = BartForSequenceClassification(BartConfig(**SEQ2SEQ, max_position_embeddings=POSITIONS))
    assert longest_input(classifier) == longest_input(classifier.get_encoder()) == POSITIONS
    halves = [BertConfig(**SMALL, max_position_embeddings=places) for places in (POSITIONS, POSITIONS // 2)]
    pair = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*halves))
    assert longest_input(pair) == POSITIONS
    with torch.device("meta"):
        assert longest_input(RobertaModel(encoder.config)) == POSITIONS - 2


def test_peft_over_the_table_and_prompts_before_the_row():
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    def model():
        config = GPT2Config(vocab_size=99, n_positions=POSITIONS, n_embd=16, n_layer=1, n_head=2)
        return GPT2LMHeadModel(config).eval()

    adapters = (
        LoraConfig(task_type="CAUSAL_LM", target_modules=["wpe"]),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], modules_to_save=["wpe"], fan_in_fan_out=True),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    )
    for adapter, limit in zip(adapters, (POSITIONS, POSITIONS, POSITIONS - 5), strict=True):
        adapted = get_peft_model(model(), adapter).eval()
        assert longest_input(adapted) == longest_taken(adapted) == limit
    loaded = model()
    loaded.add_adapter(LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert longest_input(loaded) == POSITIONS


def test_another_main_input_has_no_limit_in_tokens():
    tokens = {f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")}
    sizes = SEQ2SEQ | {"max_source_positions": 50, "max_target_positions": POSITIONS}
    assert longest_input(WhisperModel(WhisperConfig(**sizes, **tokens))) is None
