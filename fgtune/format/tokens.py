"""Control tokens and stop ids: each fact once."""

from __future__ import annotations

import re

STOP_IDS = (1, 50, 106)  # <eos>, <start_function_response> (after calls), <end_of_turn> (after text)


CONTROL_TOKEN = re.compile(
    r"<(?:pad|eos|bos|unk|mask|escape|image_soft_token|unused[0-9]+"
    r"|(?:start|end)_(?:function_declaration|function_call|function_response|of_turn|of_image))>"
)


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


TOKEN_IDS = {"call": 48, "end_call": 49, "response": 50, "escape": 52, "eos": 1, "end_of_turn": 106}


END_OF_TURN = 106
