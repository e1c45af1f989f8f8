"""layer-removal: every class of transformers that can be built small, without two of its layers; and forms of data.

Reference of an architecture, by hand: the whole model, in which the forward pass of the layers in question gives back
what it is given. The model without them gives the same, also after it was saved and loaded, and generates the same with
a cache and without where the whole one does. What is refused is named here with the reason; a model that was refused is
as it was.
"""

from __future__ import annotations

import functools
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import Trainer, TrainingArguments
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.strangers.situation import Situation, Wrong
from hf_ft_plugins import with_plugins
from hf_ft_plugins.errors import PluginError
from hf_ft_plugins.techniques.layer_removal import remove_layers, verify_model
from hf_ft_plugins.techniques.layer_removal.gate import REPORT
from hf_ft_plugins.techniques.layer_removal.score import score_layers
from hf_ft_plugins.techniques.layer_removal.smallest_model import smallest
from hf_ft_plugins.techniques.layer_removal.stacks import block_stacks
from hf_ft_plugins.techniques.layer_removal.trial_inputs import forward, main_output, trial_inputs
from hf_ft_plugins.techniques.peft import quantize

CLOSE = 1e-4
LAYERS = [1, 4]
MAPPINGS = {
    "causal models": "FOR_CAUSAL_LM",
    "masked models": "FOR_MASKED_LM",
    "classifiers of texts": "FOR_SEQUENCE_CLASSIFICATION",
    "encoder-decoders": "FOR_SEQ_TO_SEQ_CAUSAL_LM",
    "speech to text": "FOR_SPEECH_SEQ_2_SEQ",
    "classifiers of sound": "FOR_AUDIO_CLASSIFICATION",
    "letters of sound": "FOR_CTC",
    "classifiers of images": "FOR_IMAGE_CLASSIFICATION",
}
NOT_QUICK = ("masked models", "classifiers of texts", "letters of sound")
QUICK = {
    *("llama", "gpt2", "gemma4_text", "bart", "xlm-roberta-xl", "led", "vit", "wav2vec2", "whisper", "t5", "swin"),
    *("prophetnet", "beit", "xlm", "jamba", "speech_to_text"),
}
# Larger than 30 million weights, or with sizes that hang together in a way of their own.
NOT_BUILT = (
    "AudioFlamingo3ForConditionalGeneration|BitForImageClassification|BltForCausalLM|"
    "CanaryForConditionalGeneration|CohereAsrForConditionalGeneration|CohereCompassForCausalLM|"
    "CohereCompassTextForSequenceClassification|CpmAntForCausalLM|DbrxForCausalLM|DiaForConditionalGeneration|"
    "Dots3NoteForCausalLM|EfficientNetForImageClassification|Emu3ForCausalLM|EncoderDecoderModel|EsmcForMaskedLM|"
    "EsmcForSequenceClassification|FalconH1ForCausalLM|FocalNetForImageClassification|"
    "FunAsrNanoForConditionalGeneration|FunnelForMaskedLM|FunnelForSequenceClassification|FuyuForCausalLM|"
    "GPTNeoForCausalLM|GPTNeoForSequenceClassification|Gemma3ForConditionalGeneration|"
    "Gemma3ForSequenceClassification|Gemma3nForCausalLM|Gemma3nForConditionalGeneration|"
    "Gemma4AssistantForCausalLM|Gemma4ForConditionalGeneration|Gemma4UnifiedAssistantForCausalLM|"
    "Gemma4UnifiedForConditionalGeneration|GlmAsrForConditionalGeneration|GotOcr2ForConditionalGeneration|"
    "GraniteMoeHybridForCausalLM|GraniteSpeech5ForCTC|GraniteSpeechForConditionalGeneration|"
    "GraniteSpeechPlusForConditionalGeneration|HGNetV2ForImageClassification|KimiLinearForCausalLM|"
    "KyutaiSpeechToTextForConditionalGeneration|LayoutLMv2ForSequenceClassification|"
    "LayoutLMv3ForSequenceClassification|Lfm2MoeForCausalLM|LiltForSequenceClassification|Llama4ForCausalLM|"
    "LukeForMaskedLM|LukeForSequenceClassification|Mamba2ForCausalLM|Mistral4ForSequenceClassification|"
    "MobileViTForImageClassification|MobileViTV2ForImageClassification|ModernVBertForMaskedLM|"
    "ModernVBertForSequenceClassification|MoonshineForConditionalGeneration|"
    "MoonshineStreamingForConditionalGeneration|MoshiForCausalLM|MossTranscribeDiarizeForConditionalGeneration|"
    "MusicFlamingoForConditionalGeneration|MusicgenForCausalLM|MusicgenMelodyForCausalLM|"
    "Nemotron3_5TranscribeForConditionalGeneration|PerceiverForImageClassificationLearned|PerceiverForMaskedLM|"
    "PerceiverForSequenceClassification|Phi4MultimodalForCausalLM|Qwen2AudioForConditionalGeneration|"
    "Qwen3ASRForConditionalGeneration|Qwen3_5ForCausalLM|Qwen3_5MoeForCausalLM|Qwen4ExpForCausalLM|"
    "ReformerForMaskedLM|ReformerForSequenceClassification|ReformerModelWithLMHead|RoCBertForCausalLM|"
    "RoCBertForMaskedLM|RoCBertForSequenceClassification|SeamlessM4TForSpeechToText|SeamlessM4Tv2ForSpeechToText|"
    "ShieldGemma2ForImageClassification|Siglip2ForImageClassification|SpeechEncoderDecoderModel|"
    "T5Gemma2ForConditionalGeneration|T5Gemma2ForSequenceClassification|TextNetForImageClassification|"
    "TimmWrapperForImageClassification|UltraVBertForMaskedLM|UltraVBertForSequenceClassification|"
    "VibeVoiceAsrForConditionalGeneration|VibeVoiceForConditionalGeneration|VoxtralForConditionalGeneration|"
    "VoxtralRealtimeForConditionalGeneration|XmodForCausalLM|XmodForMaskedLM|XmodForSequenceClassification|"
    "Zamba2ForCausalLM|Zamba2ForSequenceClassification|ZambaForCausalLM|ZambaForSequenceClassification|"
    "ZayaForCausalLM"
)
# Reasons, by class and side. By number: the kind of a layer, or a number in its forward pass, follows from its place.
BY_NUMBER = "Beam|DiffLlama|HrmText|Jamba|NllbMoe|PegasusX|SwitchTransformers|RecurrentGemma|NemotronH"
NO_LIST = "HrmText|Albert|Mobile|SwiftFormer|PPLCNet|Levit|ResNet|RegNet|Cvt|Hiera|Pvt|PoolFormer|ConvNext"
STAGES = "Swin|Segformer|Pvt|ConvNext|ResNet|RegNet|Cvt|Dinat|Levit|PoolFormer|Hiera|EfficientFormer"
REASONS = (
    (f"({BY_NUMBER})", "places differ.*(with protect_last=0|Remove others)|no longer generates.*Remove other"),
    (f"({STAGES})", "list of stages|places differ|no list of layers"),
    (f"({NO_LIST})", "no list of layers"),
    ("Esm", "contact_head.*Remove others"),
    # Stock cannot use its cache where the decoder is the deeper of the two.
    ("(T5|MT5|UMT5|LongT5|ProphetNet).* encoder", "no longer generates.*side=decoder"),
)


def situations() -> list[Situation]:
    return [*_architectures(), *_quantised(), *_forms_of_data()]


# ---- architectures ----


def _architectures() -> Iterator[Situation]:
    for title, mapping in MAPPINGS.items():
        for kind, names in sorted(getattr(modeling_auto, f"MODEL_{mapping}_MAPPING_NAMES").items()):
            name = names if isinstance(names, str) else names[0]
            if kind not in CONFIG_MAPPING or not hasattr(transformers, name) or re.fullmatch(NOT_BUILT, name):
                continue
            for side in ("encoder", "decoder") if title in ("encoder-decoders", "speech to text") else ("",):
                said = f"{kind} {name} {side}".strip()
                mend = next((reason for classes, reason in REASONS if re.match(classes, f"{name} {side}")), None)
                run = functools.partial(check_architecture, name, kind, side)
                yield Situation(title, said, run, mend, kind in QUICK and title not in NOT_QUICK)


def check_architecture(name: str, kind: str, only: str) -> None:
    def build() -> Any:
        return smallest(getattr(transformers, name), CONFIG_MAPPING[kind])

    whole = build()
    inputs = trial_inputs(whole)
    for side, stack in block_stacks(whole).items():
        if only and side != only:
            continue
        depth = len(stack.layers)
        layers = LAYERS if depth > max(LAYERS) else [depth // 2]
        model = build()
        before = _told(model)
        try:
            removal = remove_layers(model, layers, side=side)
        except PluginError:
            if _told(model) != before:
                raise Wrong(f"{name} {side} was refused and is not as it was") from None
            raise
        found = _output(model, inputs)
        if len(stack.keys) == 1 and name not in ("OpenAIGPTLMHeadModel", "OpenAIGPTForSequenceClassification"):
            # Other blocks have no forward pass that could give back what they are given.
            _compare(found, _output(_skipping(build(), side, layers), inputs), f"{name} {side} without {layers}")
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            again = type(model).from_pretrained(folder).train(False)
        _compare(_output(again, inputs), found, f"{name} {side} loaded again")
        verify_model(model, inputs=inputs)
        removal.restore()
        _compare(_output(model, inputs), _output(whole, inputs), f"{name} {side} restored")


def _skipping(model: Any, side: str, layers: list[int]) -> Any:
    for number in layers:
        layer = block_stacks(model)[side].layers[number]

        def passed(given: Any, *more: Any, plain: Any = layer.forward, **settings: Any) -> Any:
            out = plain(given, *more, **settings)
            return (given, *out[1:]) if isinstance(out, tuple) else given

        layer.forward = passed
    return model


def _output(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return main_output(forward(model, inputs))


def _compare(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    if found.shape != wanted.shape:
        raise Wrong(f"{what} gives {tuple(found.shape)}, not {tuple(wanted.shape)}")
    off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-9))
    if not off < CLOSE:
        raise Wrong(f"{what} is {off:.1e} off")


def _told(model: Any) -> Any:
    weights = [(name, id(weight)) for name, weight in model.named_parameters()]
    numbers = [(name, vars(module).get("layer_idx"), module.training) for name, module in model.named_modules()]
    return repr(model), repr(model.config.to_dict()), weights, numbers


# ---- quantised models ----


def _quantised() -> Iterator[Situation]:
    for bits in ("nf4", "int8"):
        for name, kind in (("LlamaForCausalLM", "llama"), ("GPT2LMHeadModel", "gpt2"), ("OPTForCausalLM", "opt")):
            yield Situation("quantised", f"{kind} {bits}", functools.partial(check_quantised, name, kind, bits))


def check_quantised(name: str, kind: str, bits: Any) -> None:
    def build() -> Any:
        model = smallest(getattr(transformers, name), CONFIG_MAPPING[kind])
        quantize(model, bits)
        return model

    model = build()
    inputs = trial_inputs(model)
    removal = remove_layers(model, LAYERS)
    _compare(_output(model, inputs), _output(_skipping(build(), "", LAYERS), inputs), f"{name} in {bits}")
    removal.restore()
    _compare(_output(model, inputs), _output(build(), inputs), f"{name} in {bits} restored")


# ---- forms of data ----


def _forms_of_data() -> Iterator[Situation]:
    forms = {
        "read lazily (set_transform)": check_lazy,
        "some rows without labels": check_unlabelled,
        "a collator that gives no labels": check_without_labels,
        "answers in a text": check_answers,
        "several choices, padded": check_choices,
    }
    for name, check in forms.items():
        yield Situation("forms of data", name, check)
    for name, kind, labels in (
        ("ViTForImageClassification", "vit", 1),
        ("Wav2Vec2ForSequenceClassification", "wav2vec2", 1),
        ("WhisperForConditionalGeneration", "whisper", [5, 6, 7]),
        ("Speech2TextForConditionalGeneration", "speech_to_text", [5, 6, 7]),
    ):
        for options in ("", ",distill=1"):
            run = functools.partial(check_other_inputs, name, kind, labels, options)
            yield Situation("inputs that are no ids", f"{kind}{options}", run)


def _ids() -> torch.Tensor:
    return torch.randint(3, 90, (8, 20), generator=torch.Generator().manual_seed(1))


def _heal(model: Any, rows: Any, options: str = "", **settings: Any) -> dict[str, Any]:
    """The report of a short run, whose perplexity must be what the trainer itself then finds."""
    technique = f"layer-removal:number=1,max_degradation=none,max_repetition=none{options}"
    more = {name: settings.pop(name) for name in ("data_collator",) if name in settings}
    sizes = {"max_steps": 2, "per_device_train_batch_size": 4, "report_to": [], "use_cpu": True, "disable_tqdm": True}
    args = TrainingArguments("run", **sizes, **settings)
    trainer = with_plugins(Trainer, technique)(model, args, train_dataset=rows, eval_dataset=rows, **more)
    trainer.train()
    report = json.loads(Path("run", REPORT).read_text())
    loss = trainer.evaluate().get("eval_loss")
    if loss is not None and abs(math.log(report["healed"]["perplexity"]) - loss) > 1e-3:
        raise Wrong(f"the report says {report['healed']['perplexity']}, the trainer exp({loss})")
    return report


def _llama() -> Any:
    return smallest(transformers.LlamaForCausalLM, CONFIG_MAPPING["llama"])


def check_lazy() -> None:
    data = Dataset.from_dict({"numbers": _ids().tolist()})
    data.set_transform(lambda rows: {name: torch.tensor(rows["numbers"]) for name in ("input_ids", "labels")})
    report = _heal(_llama(), data, remove_unused_columns=False)
    if report["chosen_by"] != "perplexity":
        raise Wrong(f"layers were chosen by {report['chosen_by']}")


def check_unlabelled() -> None:
    rows = [
        {"input_ids": row, "labels": row if at % 2 else torch.full_like(row, -100)} for at, row in enumerate(_ids())
    ]
    _heal(_llama(), rows)


def check_without_labels() -> None:
    def collate(features: list[Any]) -> dict[str, Any]:
        return {"input_ids": torch.stack([one["input_ids"] for one in features])}

    technique = with_plugins(Trainer, "layer-removal:number=1")
    args = TrainingArguments("run", report_to=[], use_cpu=True)
    rows = [{"input_ids": row} for row in _ids()]
    trainer = technique(_llama(), args, train_dataset=rows, eval_dataset=rows, data_collator=collate)
    if len(trainer.model.model.layers) != 5:
        raise Wrong("no layer is gone")


def check_answers() -> None:
    model = smallest(transformers.BertForQuestionAnswering, CONFIG_MAPPING["bert"])
    _heal(model, [{"input_ids": row, "start_positions": 1, "end_positions": 3} for row in _ids()])


def check_choices() -> None:
    """The padding of choices does not change what is removed: other tokens there, the same scores."""
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6}
    model = transformers.BertForMultipleChoice(transformers.BertConfig(**sizes, num_attention_heads=2)).train(False)
    ids = torch.randint(3, 90, (2, 3, 10), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[..., 6:] = 0
    whole, other = ({"input_ids": one, "attention_mask": mask} for one in (ids, ids.where(mask == 1, 7)))
    found, wanted = (score_layers(model, [batch])["block_influence"] for batch in (whole, other))
    if max(abs(one - two) for one, two in zip(found, wanted, strict=True)) > 1e-7:
        raise Wrong(f"padding changes the scores from {wanted} to {found}")
    _heal(model, [{name: one[0] for name, one in whole.items()} | {"labels": at % 3} for at in range(4)])


def check_other_inputs(name: str, kind: str, labels: Any, options: str) -> None:
    model = smallest(getattr(transformers, name), CONFIG_MAPPING[kind])
    inputs = trial_inputs(model)[model.main_input_name]
    _heal(model, [{model.main_input_name: inputs[at % 2], "labels": torch.tensor(labels)} for at in range(4)], options)
