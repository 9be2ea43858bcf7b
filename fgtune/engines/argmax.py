"""Exact argmax over a large vocabulary, with a bfloat16 prefilter."""

from __future__ import annotations

MOST_CANDIDATES = 512  # a row with more goes through the whole output layer


class ExactArgmax:
    """The most likely token of each row, by a table `[vocabulary, hidden]` of float32: exactly float32's argmax.

    A prefilter computes all logits in bfloat16. A logit is then off by at most `2^-7 |h| |w|`, because both matmul
    operands and the sum are rounded by 2^-9. So only tokens within twice that of the best can be the argmax. Their
    logits are computed again in float32.
    """

    def __init__(self, table):
        self.table, self.low = table, table.bfloat16()
        self.reach = 2.0**-6 * table.norm(dim=1).max().item()

    @staticmethod
    def unsupported_reason(model) -> str | None:
        """Why this would not be faster for the model, or not possible; None if it is."""
        from .torch_support import bfloat16_unsupported_reason, unsupported_reason

        return unsupported_reason(model) or bfloat16_unsupported_reason()

    @classmethod
    def of(cls, model) -> ExactArgmax:
        """For the output layer of an MLX model on a CPU, whose memory is shared."""
        from .torch_support import as_torch

        return cls(as_torch((model.model.embed_tokens if model.tie_word_embeddings else model.lm_head).weight))

    def __call__(self, h, allowed=None) -> list[int]:
        """Token ids for normed hidden states `[B, hidden]` (torch); the lowest id where several are equal.

        `allowed` (NumPy bool `[B, vocabulary]`) says which it may be.
        """
        import torch

        near = h.bfloat16() @ self.low.T
        if allowed is not None:
            near.masked_fill_(torch.from_numpy(~allowed), -torch.inf)
        least = near.amax(dim=1).float() - self.reach * h.norm(dim=1)
        tokens = []
        for row, coarse, bound in zip(h, near, least):
            found = torch.nonzero(coarse >= bound).squeeze(1)
            if len(found) <= MOST_CANDIDATES:
                tokens.append(found[(self.table[found] @ row).argmax()].item())
            else:
                tokens.append((self.table @ row).masked_fill_(coarse < bound, -torch.inf).argmax().item())
        return tokens
