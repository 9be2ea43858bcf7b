"""Every answer of a teacher, kept as soon as it is there: what was asked once is never asked again."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


class AnswerLog:
    """A JSONL file of answers by what was asked. It is only ever added to, a line an answer, so that an interrupted
    generation goes on with all that it had. A line that a crash cut off is dropped and asked for again."""

    def __init__(self, path: Path):
        self.path, self.answers = path, {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):
            try:
                entry = json.loads(line)
                self.answers[entry["key"]] = entry["answer"]
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    @staticmethod
    def key(**asked) -> str:
        """What was asked as one hash: equal questions to equal models with equal settings are equal."""
        return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def add(self, key: str, about: str, answer: str) -> None:
        """Keep an answer: it is on disk when this returns. `about` says what it answers, for a reader of the file."""
        self.answers[key] = answer
        line = json.dumps({"key": key, "about": about, "answer": answer}, ensure_ascii=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
