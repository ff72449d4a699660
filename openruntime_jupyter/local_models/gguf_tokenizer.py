"""Tokenizer of a GGUF file, rebuilt with `tokenizers` to produce the same tokens as llama.cpp."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from openruntime_jupyter.local_models.folder import NotAModel
from openruntime_jupyter.local_models.gguf_file import Header

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from tokenizers import Tokenizer

UNKNOWN, CONTROL, USER_DEFINED, BYTE = 2, 3, 4, 6
"""GGUF token types; all others are ordinary tokens."""

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGIT = r"\p{N}"

SPLITS = {
    "gpt-2": (GPT2,),
    "smollm": (DIGIT, GPT2),
    "starcoder": (DIGIT, GPT2),
    "refact": (DIGIT, GPT2),
    "command-r": (DIGIT, GPT2),
    "llama-bpe": (LLAMA3,),
    "qwen2": (QWEN2,),
}
"""Patterns that split text before merging, by `tokenizer.ggml.pre`; each pattern is applied to the pieces of the previous one."""
ALIASES = {"gpt2": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}
WHOLE_WORDS_FIRST = ("llama-bpe",)
"""Rules for which a word that is a token is not merged."""
BEGINS = ("llama-bpe",)
"""Rules for which text begins with a BOS token by default."""

ENDS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<|end_of_text|>", "<EOT>", "<end_of_utterance>",
)  # fmt: skip
"""Special tokens that end a response in any model that has them; many files declare only one of them."""
END_KEYS = ("eos", "eot", "eom")


def build_tokenizer(header: Header) -> TokenizerWrapper:
    """Return the mlx-lm tokenizer for a header that was read with its lists; raise `NotAModel` if it can't be rebuilt."""
    from mlx_lm.tokenizer_utils import BPEStreamingDetokenizer, SPMStreamingDetokenizer, TokenizerWrapper
    from transformers import PreTrainedTokenizerFast

    vocabulary = _Vocabulary(header)
    kind = header.values.get("tokenizer.ggml.model")
    detokenizer: Any
    if kind == "gpt2":
        tokenizer, detokenizer = _byte_level(header, vocabulary), BPEStreamingDetokenizer
    elif kind == "llama":
        tokenizer = _sentence_pieces(header, vocabulary)
        detokenizer = partial(SPMStreamingDetokenizer, trim_space=_adds_space(header))
    else:
        raise NotAModel(
            f"{header.path} has the unsupported tokenizer {kind!r}: supported are byte-level BPE (gpt2) and SentencePiece (llama)"
        )
    tokenizer.add_tokens(vocabulary.added())
    begins = _begins_with(header, vocabulary)
    if begins is not None:
        from tokenizers.processors import TemplateProcessing

        text = vocabulary.tokens[begins]
        tokenizer.post_processor = TemplateProcessing(single=f"{text} $A", pair=f"{text} $A $B", special_tokens=[(text, begins)])
    names = {
        f"{name}_token": vocabulary.named(key) for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    make: Any = PreTrainedTokenizerFast
    wrapped = make(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=header.whole("llama.context_length"),
        **{name: token for name, token in names.items() if token is not None},
    )
    template = header.values.get("tokenizer.chat_template")
    wrapped.chat_template = template if isinstance(template, str) else None
    return TokenizerWrapper(wrapped, detokenizer, eos_token_ids=vocabulary.ends())


class _Vocabulary:
    """Tokens of a file and their types; raises `NotAModel` for inconsistent lists."""

    def __init__(self, header: Header) -> None:
        self._header = header
        self.tokens = self.column("tokens", str)
        self.kinds = self.column("token_type", int) if "tokenizer.ggml.token_type" in header.values else [1] * len(self.tokens)
        if len(set(self.tokens)) < len(self.tokens):
            raise NotAModel(f"{header.path} is damaged: its vocabulary has duplicate tokens")
        rows = header.tensors["token_embd.weight"].shape[0]
        if not len(self.tokens) == len(self.kinds) <= rows:
            raise NotAModel(f"{header.path} is damaged: {len(self.tokens)} tokens, {len(self.kinds)} token types, {rows} embedding rows")

    def column(self, key: str, of: type) -> list[Any]:
        """Return a list with one entry for each token or merge."""
        values = self._header.values.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not values or not all(type(item) is of for item in values):
            raise NotAModel(f"{self._header.path} lacks the list tokenizer.ggml.{key} of its tokenizer: use another file of this model")
        return values

    @property
    def ids(self) -> dict[str, int]:
        """Return the id of each token."""
        return {token: number for number, token in enumerate(self.tokens)}

    def id(self, key: str) -> int | None:
        """Return the id of the token with a role, such as `eos`."""
        number = self._header.values.get(f"tokenizer.ggml.{key}_token_id")
        return number if type(number) is int and 0 <= number < len(self.tokens) else None

    def named(self, key: str) -> str | None:
        """Return the text of the token with a role."""
        return None if (number := self.id(key)) is None else self.tokens[number]

    def added(self) -> list[Any]:
        """Return the tokens that are matched in a text before any other processing."""
        from tokenizers import AddedToken

        return [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(self.tokens, self.kinds, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]

    def ends(self) -> set[int]:
        """Return the ids of the tokens that end a response."""
        named = {self.id(key) for key in END_KEYS} - {None}
        ids = self.ids
        known = {ids[token] for token in ENDS if token in ids and self.kinds[ids[token]] in (CONTROL, USER_DEFINED)}
        return {number for number in named if number is not None} | known


def _begins_with(header: Header, vocabulary: _Vocabulary) -> int | None:
    """Return the id of the token that begins every text, or None."""
    usual = header.values["tokenizer.ggml.model"] == "llama" or _splitting(header) in BEGINS
    if not header.values.get("tokenizer.ggml.add_bos_token", usual):
        return None
    return vocabulary.id("bos")


def _splitting(header: Header) -> str:
    name = str(header.values.get("tokenizer.ggml.pre", ""))
    return ALIASES.get(name, name)


def _byte_level(header: Header, vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    name = _splitting(header)
    if name not in SPLITS:
        cause = f"has the unknown pre-tokenizer {name!r}" if name else "does not name its pre-tokenizer (tokenizer.ggml.pre)"
        raise NotAModel(f"{header.path} {cause}; supported: {', '.join(SPLITS)}. Use another file of this model, or an MLX folder")
    merges = [tuple(merge.split(" ")) for merge in vocabulary.column("merges", str)]
    try:
        model = models.BPE(vocabulary.ids, merges, ignore_merges=name in WHOLE_WORDS_FIRST)
    except Exception as problem:  # tokenizers raises plain exceptions for merges without matching tokens
        raise NotAModel(f"{header.path} is damaged: its merges do not match its tokens ({problem})") from None
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS[name]]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _adds_space(header: Header) -> bool:
    return bool(header.values.get("tokenizer.ggml.add_space_prefix", True))


def _sentence_pieces(header: Header, vocabulary: _Vocabulary) -> Tokenizer:
    """Build a SentencePiece tokenizer. Its pairs are merged by the score of the result, which determines the merge order."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = vocabulary.column("scores", float)
    if len(scores) != len(vocabulary.tokens) or (unknown := vocabulary.named("unknown")) is None:
        raise NotAModel(f"{header.path} is damaged: {len(scores)} scores for {len(vocabulary.tokens)} tokens, or no unknown token")
    ids = vocabulary.ids
    ordinary = [number for number, kind in enumerate(vocabulary.kinds) if kind not in (UNKNOWN, CONTROL, USER_DEFINED, BYTE)]
    merges = []
    for number in sorted(ordinary, key=lambda number: -scores[number]):
        token = vocabulary.tokens[number]
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        merges += [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
    has_bytes = BYTE in vocabulary.kinds
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if _adds_space(header) else space
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if _adds_space(header) else []))
    return tokenizer
