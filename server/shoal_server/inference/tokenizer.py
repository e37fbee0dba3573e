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
        self._special_tokens = tokenizer.num_special_tokens_to_add(is_pair=False)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens)
        self._tokenizer = tokenizer

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
            token_id = self._tokenizer.token_to_id(token)
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
        encoded = self._encode(prepared)
        if not truncate:
            self._refuse_long(encoded)
        return [Encoding(each.ids, truncated=bool(each.overflowing)) for each in encoded]

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's string of each id."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in ids]

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        try:
            # Also for one text: `encode` holds the GIL, and with it the event loop, for
            # a second when the text has a megabyte.
            return self._tokenizer.encode_batch_fast(texts)
        except Exception as error:  # tokenizers raises bare Exception
            raise self._name_culprit(texts) from error

    def _name_culprit(self, texts: list[str]) -> InvalidInput:
        for index, text in enumerate(texts):
            try:
                self._tokenizer.encode_batch_fast([text])
            except Exception:  # tokenizers raises bare Exception
                return InvalidInput(f"texts[{index}]", "can not be tokenized")
        return InvalidInput("texts", "can not be tokenized together")

    def _refuse_long(self, encoded: list[tokenizers.Encoding]) -> None:
        for index, each in enumerate(encoded):
            if each.overflowing:
                # What was cut off comes in pieces, each with special tokens of its own.
                cut = sum(len(piece.ids) - self._special_tokens for piece in each.overflowing)
                length = len(each.ids) + cut
                raise InvalidInput(
                    f"texts[{index}]",
                    f"{length} tokens, the model takes {self._max_tokens} (truncate is off)",
                    metadata={"limit": self._max_tokens, "value": length},
                )
