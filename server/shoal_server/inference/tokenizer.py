"""From texts to token ids, as the reference runtime makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from shoal_server.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Encoding:
    """The token ids of one text."""

    ids: Sequence[int]
    """Special tokens included."""
    truncated: bool = False


class TextTokenizer:
    """A `tokenizer.json` with padding off and our own truncation.

    Files of the hub carry the padding and truncation they were saved with, which
    is not what the model takes (all-MiniLM-L6-v2's says 128 tokens; it takes 256).

    May be called from several threads.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        tokenizer.no_padding()
        tokenizer.no_truncation()
        # Two, since truncation is a state of the tokenizer, not of the call.
        self._whole = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        tokenizer.enable_truncation(max_tokens)
        self._cut = tokenizer

    @classmethod
    def open(cls, path: Path, max_tokens: int) -> TextTokenizer:
        """Read a `tokenizer.json`.

        Raises:
            ValueError: It is not one, or not one for inputs of `max_tokens`.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise ValueError(f"{path.name}: {error}") from error
        special = tokenizer.num_special_tokens_to_add(is_pair=False)
        if special > max_tokens:  # tokenizers would cut nothing at all, and say nothing
            raise ValueError(
                f"{path.name}: adds {special} special tokens, the model takes {max_tokens}"
            )
        return cls(tokenizer, max_tokens)

    @property
    def pad_id(self) -> int:
        """What stands in padded places: the model's own padding token where it has one."""
        for token in ("[PAD]", "<pad>", "<|endoftext|>"):
            token_id = self._cut.token_to_id(token)
            if token_id is not None:
                return token_id
        return 0

    def encode(
        self, texts: Sequence[str], *, prompt: str = "", truncate: bool = True
    ) -> list[Encoding]:
        """Tokenize texts.

        Args:
            texts: Any valid Unicode; empty texts too.
            prompt: Put before each text.
            truncate: Cut to the model's maximum; else refuse.

        Raises:
            InvalidInput: A text is too long and `truncate` is off, or the tokenizer
                refuses it; names the text.
        """
        prepared = [prompt + text for text in texts] if prompt else list(texts)
        encodings = self._encode(self._cut, prepared)
        if not truncate:
            self._refuse_long(prepared, encodings)
        return encodings

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's string of each id."""
        return [self._cut.id_to_token(token_id) or "" for token_id in ids]

    def _encode(self, tokenizer: tokenizers.Tokenizer, texts: list[str]) -> list[Encoding]:
        try:
            # Also for one text: `encode` holds the GIL, and with it the event loop, for
            # a second when the text has a megabyte.
            encoded = tokenizer.encode_batch_fast(texts)
        except Exception as error:  # tokenizers raises bare Exception
            raise self._name_culprit(tokenizer, texts) from error
        return [Encoding(each.ids, truncated=bool(each.overflowing)) for each in encoded]

    @staticmethod
    def _name_culprit(tokenizer: tokenizers.Tokenizer, texts: list[str]) -> InvalidInput:
        for index, text in enumerate(texts):
            try:
                tokenizer.encode_batch_fast([text])
            except Exception:  # tokenizers raises bare Exception
                return InvalidInput(f"texts[{index}]", "can not be tokenized")
        return InvalidInput("texts", "can not be tokenized together")

    def _refuse_long(self, prepared: list[str], encodings: list[Encoding]) -> None:
        for index, encoding in enumerate(encodings):
            if encoding.truncated:
                (whole,) = self._whole.encode_batch_fast([prepared[index]])
                length = len(whole.ids)
                raise InvalidInput(
                    f"texts[{index}]",
                    f"{length} tokens, the model takes {self._max_tokens} (truncate is off)",
                    metadata={"limit": self._max_tokens, "value": length},
                )
