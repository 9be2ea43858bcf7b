"""Episodes: one tool set and the requests that share it, as chat rows."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator

from .chat import CHAT, SORRY
from .declare import STYLES, declare
from .kinds import Declared, Kind, Request, Unusable, read_kinds
from .leaderboard import Item, chat_row

REQUESTS = 16  # of an episode: a batch
LONGEST = 2600  # characters of the tools as JSON
HELD_OUT = ("run_washer", "move_event", "order_food", "find_film", "book_room", "send_money", "robot_fetch",
            "rewrite_text")  # fmt: skip # kinds of the check: never trained
JOINTS = (". ", "; ", ", then ", " and ", ", and ", ". Also, ", " and then ", ". Then ", ", ")
NO_CALL, SEVERAL, LOWER = 0.12, 0.16, 0.35  # shares of requests
SHARES = (("kinds", 0.84), ("leaderboard", 0.16))


class Episodes:
    """The generator: `training(count)` and `check(count)` give chat rows, `size` at most of each tool set."""

    def __init__(self, seed: int, leaderboard: list[Item], size: int = REQUESTS):
        self.rng = random.Random(seed)
        self.size, self.items = size, leaderboard
        kinds = read_kinds()
        self.held_out = [kind for kind in kinds if kind.names[0] in HELD_OUT]
        self.kinds = [kind for kind in kinds if kind.names[0] not in HELD_OUT]
        self.seen: set[frozenset] = set()
        self.names: set[str] = set()

    def training(self, count: int) -> Iterator[list[dict]]:
        """`count` episodes."""
        made = 0
        while made < count:
            source = self.rng.choices([name for name, _ in SHARES], [share for _, share in SHARES])[0]
            if source == "leaderboard" and not self.items:
                continue
            tools, requests = getattr(self, f"_{source}")()
            names = frozenset(tool["name"] for tool in tools)
            enough = self.size // 2 + 1  # fewer would be batched with those of other sets
            if len(names) < len(tools) or names in self.seen or len(requests) < enough:
                continue
            self.seen.add(names)
            self.names |= names
            yield [
                chat_row(f"{source[0]}{made:04}-{i:02}", r.text, r.calls, tools, r.answer)
                for i, r in enumerate(requests)
            ]
            made += 1

    def check(self, count: int) -> list[dict]:
        """Cases of the kinds that are never trained, by names that no trained set has; after `training`."""
        rows: list[dict] = []
        while len(rows) < count:
            tools, requests = self._of_kinds(self.rng.sample(self.held_out, 5), 0)
            names = frozenset(tool["name"] for tool in tools)
            if len(names) == len(tools) and not names & self.names and names not in self.seen:
                self.seen.add(names)
                rows += [
                    chat_row(f"check-{len(rows) + i:03}", r.text, r.calls, tools, r.answer)
                    for i, r in enumerate(requests)
                ]
        return rows[:count]

    def _kinds(self) -> tuple[list[dict], list[Request]]:
        few = self.rng.random() < 0.4
        pool = self.kinds
        if self.rng.random() < 0.25:  # one subject: tools that are near to each other
            families = self.rng.sample(sorted({kind.family for kind in pool}), 2)
            pool = [kind for kind in pool if kind.family in families]
        count = self.rng.randint(3, 6) if few else self.rng.randint(5, 12)
        distractors = self.rng.choice((0, 0, 0, 0, 1, 2)) if self.items else 0
        return self._of_kinds(self.rng.sample(pool, min(count, len(pool))), distractors)

    def _of_kinds(self, kinds: list[Kind], distractors: int) -> tuple[list[dict], list[Request]]:
        rng, style, argument_style = self.rng, self.rng.choice(STYLES), self.rng.choice(STYLES[:6])
        plain = rng.random() < 0.2
        declared: list[Declared] = []
        for kind in kinds:
            new = declare(kind, rng, style, argument_style, plain)
            if len(json.dumps([d.tool for d in [*declared, new]])) <= LONGEST and _works(new, rng):
                declared.append(new)
        tools = [d.tool for d in declared]
        for item in rng.sample(self.items, distractors) if distractors else []:
            if len(json.dumps([*tools, item.tools[0]])) <= LONGEST:
                tools.append(item.tools[0])
        rng.shuffle(tools)
        requests, texts = [], set()
        for _ in range(6 * self.size):
            if len(requests) >= self.size or not declared:
                break
            request = self._request(declared, sorted({k.family for k in kinds}), bool(distractors))
            if request.text.lower() not in texts:
                texts.add(request.text.lower())
                requests.append(request)
        return tools, requests

    def _request(self, declared: list[Declared], families: list[str], distractors: bool) -> Request:
        rng, chance = self.rng, self.rng.random()
        lower = rng.random() < LOWER
        if chance < NO_CALL:
            return self._no_call(declared, families, distractors)
        parts = [rng.choice(declared).request(rng, lower)]
        if chance < NO_CALL + SEVERAL and parts[0].goes_on:
            parts.append(rng.choice(declared).request(rng, lower))
            if rng.random() < 0.25 and parts[1].goes_on:
                parts.append(rng.choice(declared).request(rng, lower))
        return Request(self._joined(parts), tuple(call for part in parts for call in part.calls))

    def _joined(self, parts: list[Request]) -> str:
        text, rng = parts[0].text, self.rng
        for part in parts[1:]:
            joint = rng.choice(JOINTS)
            more = part.text
            if text[-1] in ".?!":
                text += " " + more
                continue
            values = json.dumps([arguments for _, arguments in part.calls], ensure_ascii=False)
            if joint[0] != "." and more.split()[0] not in values and not more.startswith("I"):
                more = more[0].lower() + more[1:]
            text += joint + more
        return text

    def _no_call(self, declared: list[Declared], families: list[str], distractors: bool) -> Request:
        rng = self.rng
        asks = [ask for d in declared for ask in d.kind.asks if any(a["required"] for a in d.arguments.values())]
        if asks and rng.random() < 0.35:
            text, answer = rng.choice(asks)
            text = text if rng.random() < 0.5 else text[0].upper() + text[1:]
            return Request(text, (), False, answer)
        others = [kind for kind in self.kinds if kind.family not in families]
        if others and not distractors and rng.random() < 0.4:
            whole = declare(rng.choice(others), rng, "snake", "snake", False)
            if _works(whole, rng):
                return Request(whole.request(rng, rng.random() < LOWER).text, (), False, rng.choice(SORRY))
        text, answer = rng.choice(CHAT)
        return Request(text.lower() if rng.random() < LOWER else text, (), False, answer)

    def _leaderboard(self) -> tuple[list[dict], list[Request]]:
        rng, tools, items = self.rng, {}, []
        used: Counter = Counter()
        for item in rng.sample(self.items, len(self.items)):
            called = {name for name, _ in item.calls}
            new = {tool["name"]: tool for tool in item.tools if tool["name"] in called}
            if any(used[name] >= 3 for name in called) or len(items) >= self.size - 4:
                continue
            if not all(tools.get(name) == tool for name, tool in new.items()):  # not tools that it has already
                if new.keys() & tools.keys() or _alike(new, tools) or len(tools) + len(new) > 8:
                    continue
                if len(json.dumps([*tools.values(), *new.values()])) > LONGEST:
                    continue
            tools.update(new)
            used.update(called)
            items.append(item)
        requests = [Request(item.text, item.calls, len(item.calls) == 1 and len(item.text) < 140) for item in items]
        short = [r for r in requests if r.goes_on]
        for _ in range(2 if len(short) > 1 else 0):
            pair = rng.sample(short, 2)
            requests.append(Request(self._joined(pair), pair[0].calls + pair[1].calls))
        requests += [Request(text, (), False, answer) for text, answer in rng.sample(CHAT, 2)]
        order = list(tools.values())
        rng.shuffle(order)
        return order, list({r.text.lower(): r for r in requests}.values())


def _alike(new: dict, known: dict) -> bool:
    """Whether tools do what others do already, judged by the words of their names."""
    words = lambda name: {
        w for w in name.replace(".", "_").lower().split("_") if len(w) > 3 and w not in ("calculate", "find")
    }
    return any(words(a) & words(b) for a in new for b in known)


def _works(declared: Declared, rng: random.Random) -> bool:
    """Whether some sentence says all that the declaration requires."""
    try:
        declared.request(rng)
    except Unusable:
        return False
    return True
