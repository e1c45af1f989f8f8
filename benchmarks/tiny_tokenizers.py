"""Tokenizers of every kind, trained on a few sentences: no file, no network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ByT5Tokenizer,
    CanineTokenizer,
    GPT2TokenizerFast,
    PerceiverTokenizer,
    PreTrainedTokenizerFast,
    PythonBackend,
    RobertaTokenizerFast,
)

SENTENCES = (
    "The river runs down to the sea .",
    "Don't stop : 1234 boats , 56 fish and 7.5 tons !",
    "naïve cafés cost 3 € in Zürich",
    "river rivers running runs run river",
    "東京 は 大きい 🙂 city",
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
# Llama 3's and Qwen's.
REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _fast(tokenizer: Tokenizer, trainer: Any, cls: Any = PreTrainedTokenizerFast, ends: bool = True) -> Any:
    tokenizer.train_from_iterator(list(SENTENCES) * 20, trainer)
    if ends:
        numbers = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
        template = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=numbers
        )
        before = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([before, template]) if before else template
    return cls(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level(prefix: bool = False, trim: bool = True, regex: bool = False, ends: bool = True) -> Any:
    tokenizer = Tokenizer(models.BPE(ignore_merges=regex))
    own = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not regex)
    split = pre_tokenizers.Split(Regex(REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, own]) if regex else own
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _fast(tokenizer, trainer, ends=ends)


def of_class(cls: Any) -> Any:
    """GPT-2's or RoBERTa's own class, as `from_pretrained` gives it: without add_prefix_space."""
    import json

    model = json.loads(byte_level().backend_tokenizer.to_str())["model"]
    made = cls(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])
    made.pad_token = made.pad_token or made.eos_token
    return made


def metaspace(scheme: str, split: bool = True, model: str = "unigram", normalizer: Any = None) -> Any:
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        bytes_ = [f"<0x{number:02X}>" for number in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    made = _fast(tokenizer, trainer)
    # Trained unsplit, it would have pieces that span words.
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return made


def llama_2() -> Any:
    """Blanks are made pieces by the normalizer, and nothing splits the text before the model."""
    made = metaspace("always", model="bpe")
    own = made.backend_tokenizer
    own.pre_tokenizer = None
    own.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def wordpiece(lowercase: bool = True) -> Any:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return _fast(tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False))


def word_level() -> Any:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))


def characters() -> Any:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return _fast(tokenizer, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False))


def word_endings() -> Any:
    """OpenAI GPT's and CLIP's: a word's last piece says that it is."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    return _fast(tokenizer, trainer)


def blanks_behind() -> Any:
    """SentencePiece with the blank as a suffix: `river▁`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _fast(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))


def spanning() -> Any:
    """Pieces that span words: nothing splits the text, and `a river` is one piece."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return _fast(tokenizer, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))


class Slow(PythonBackend):
    """A tokenizer in Python, without places: the characters of lower-cased words, a blank begins a word's first."""

    vocab_files_names: dict[str, str] = {}

    def __init__(self, **kwargs: Any) -> None:
        letters = sorted({letter for sentence in SENTENCES for letter in sentence.lower()} - {" "})
        pieces = [*SPECIAL, *letters, *(f"▁{letter}" for letter in letters)]
        self.numbers = {piece: number for number, piece in enumerate(pieces)}
        super().__init__(
            pad_token="<pad>",
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            special_tokens_pattern="bos_eos",
            **kwargs,
        )

    @property
    def vocab_size(self) -> int:
        return len(self.numbers)

    def get_vocab(self) -> dict[str, int]:
        return {**self.numbers, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [
            f"▁{letter}" if not place else letter for word in text.lower().split() for place, letter in enumerate(word)
        ]

    def _convert_token_to_id(self, token: str) -> int:
        return self.numbers.get(token, self.numbers["<unk>"])

    def _convert_id_to_token(self, index: int) -> str:
        return next((piece for piece, number in self.numbers.items() if number == index), "<unk>")

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


def with_added_token() -> Any:
    """A token that takes the blanks around it, as RoBERTa's <mask> does."""
    made = byte_level()
    made.add_tokens([AddedToken("boats", lstrip=True, rstrip=False)])
    return made


KINDS: dict[str, Callable[[], Any]] = {
    **{
        f"byte-level prefix={prefix} trim={trim} regex={regex} ends={ends}": partial(
            byte_level, prefix, trim, regex, ends
        )
        for prefix, trim, regex, ends in (
            (False, True, False, True),
            (False, False, False, True),
            (True, True, False, True),
            (True, False, False, True),
            (False, True, True, True),
            (False, False, True, True),
            (False, True, False, False),
        )
    },
    "GPT2TokenizerFast": partial(of_class, GPT2TokenizerFast),
    "RobertaTokenizerFast": partial(of_class, RobertaTokenizerFast),
    **{
        f"metaspace {scheme} split={split} {model}": partial(metaspace, scheme, split, model)
        for scheme in ("always", "first", "never")
        for split in (True, False)
        for model in ("unigram", "bpe")
        if split or model == "bpe"
    },
    "unigram NFKC": partial(
        metaspace, "always", normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    ),
    "Llama 2": llama_2,
    "WordPiece": wordpiece,
    "WordPiece cased": partial(wordpiece, False),
    "WordLevel": word_level,
    "characters": characters,
    "word endings": word_endings,
    "blanks behind": blanks_behind,
    "added token": with_added_token,
    "slow characters": Slow,
    "ByT5": ByT5Tokenizer,
    "Canine": CanineTokenizer,
    "Perceiver": PerceiverTokenizer,
}
