"""Control tokens and stop ids: each fact once in Python; the copies in JavaScript are tested against these."""

from __future__ import annotations

import re

#: Gemma 3's own entries that begin or end a text or a turn.
GEMMA_TOKENS = {1: "<eos>", 2: "<bos>", 105: "<start_of_turn>", 106: "<end_of_turn>"}
#: The seven reserved entries of Gemma 3's vocabulary that FunctionGemma names (shared ids 46 to 52).
CONTROL_TOKENS = {
    46: "<start_function_declaration>",
    47: "<end_function_declaration>",
    48: "<start_function_call>",
    49: "<end_function_call>",
    50: "<start_function_response>",
    51: "<end_function_response>",
    52: "<escape>",
}
IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>")

CALL_START, CALL_END, RESPONSE_START = CONTROL_TOKENS[48], CONTROL_TOKENS[49], CONTROL_TOKENS[50]
ESCAPE, EOS, TURN_END = CONTROL_TOKENS[52], GEMMA_TOKENS[1], GEMMA_TOKENS[106]
ENDINGS = (RESPONSE_START, TURN_END, EOS)  # what ends an answer: after calls, after a text, after a text

_ID = {token: i for i, token in (GEMMA_TOKENS | CONTROL_TOKENS).items()}
TOKEN_IDS = {
    "call": _ID[CALL_START],
    "end_call": _ID[CALL_END],
    "response": _ID[RESPONSE_START],
    "escape": _ID[ESCAPE],
    "eos": _ID[EOS],
    "end_of_turn": _ID[TURN_END],
}
END_OF_TURN = TOKEN_IDS["end_of_turn"]
STOP_IDS = tuple(sorted(_ID[token] for token in ENDINGS))

#: Every control token but `<unused0>`, `<unused1>` and so on, as it is spelled. Texts, names and keys must hold none.
SPELLINGS = ("<pad>", "<unk>", "<mask>", "<image_soft_token>",
             *GEMMA_TOKENS.values(), *CONTROL_TOKENS.values(), *IMAGE_TOKENS)  # fmt: skip
CONTROL_TOKEN = re.compile(f"<(?:{'|'.join(token[1:-1] for token in SPELLINGS)}|unused[0-9]+)>")
