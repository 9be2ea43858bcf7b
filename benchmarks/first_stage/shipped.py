"""The shipped examples, said to tools of other names."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

from .declare import styled, tool_name
from .kinds import Request

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
NAMES = {
    "calculate": "calculate / compute / calculator / math / arithmetic / rechnen / eval_expression",
    "get_weather": "get_weather / weather / city_forecast / wetter / check_weather / forecast",
    "web_search": "web_search / search / internet_search / lookup / query_web / suche",
    "set_reminder": "set_reminder / remind / add_reminder / reminder_new / erinnere_mich / memo",
    "set_timer": "set_timer / countdown / start_timer / timer_new / temporizador / run_timer",
    "play_music": "play_music / music / start_playback / audio_play / musik_an / listen",
    "create_event": "create_event / calendar_event / add_appointment / new_entry / termin / schedule",
    "send_email": "send_email / mail / write_email / email_send / correo / dispatch_mail",
    "add_contact": "add_contact / save_contact / contact_new / address_book_add / kontakt_neu / store_person",
}
DESCRIPTIONS = {
    "calculate": "Work out arithmetic. / Compute an expression. / Calculator.",
    "get_weather": "Weather or forecast for a city. / How the weather is. / Forecasts.",
    "web_search": "Search the web. / Looks things up on the internet. / Web lookup.",
    "set_reminder": "Remind the user of something. / Makes a reminder. / Reminders.",
    "set_timer": "Start a countdown. / Starts a timer. / Counts time down.",
    "play_music": "Play music. / Starts songs, artists or styles. / Music player.",
    "create_event": "Put an event on the calendar. / New calendar entry. / Makes appointments.",
    "send_email": "Send an email. / Writes a mail. / Email.",
    "add_contact": "Save a contact. / Puts somebody into the address book. / New contact.",
}
ARGUMENTS = {
    "expression": "expr, formula, term, input, sum", "city": "place, town, location, ort", "unit": "units, scale",
    "days": "day_count, length, n_days, for_days", "query": "q, search, what, term, text",
    "max_results": "limit, top, count, n", "text": "what, task, message, about", "date": "day, when, on, datum",
    "time": "at, clock, hour, uhrzeit", "hours": "h, hrs, hour_count", "minutes": "min, mins, minute_count",
    "label": "name, title, tag", "shuffle": "random, mix, shuffled", "volume": "loudness, level, vol",
    "title": "name, what, subject_line, summary", "attendees": "guests, people, with, invited",
    "to": "recipient, receiver, addressee", "subject": "topic, headline, betreff", "body": "message, content, letter",
    "urgent": "important, high_priority, rush", "name": "full_name, who, person", "phone": "tel, number, mobile",
    "address": "home, postal_address, adresse", "street": "road, line1", "city ": "town",
}  # fmt: skip
ARTICLES = ("without a, the, my, some", "without articles", "bare, without a, the, my")


class Shipped:
    """The nine shipped tools and their single-turn requests."""

    def __init__(self):
        files = [EXAMPLES / "tools" / f"{name}.json" for name in ("everyday", "office")]
        self.tools = {tool["name"]: tool for file in files for tool in json.loads(file.read_text("utf-8"))}
        files = [EXAMPLES / "requests" / f"{name}.json" for name in ("everyday", "office")]
        self.requests = [item for file in files for item in json.loads(file.read_text("utf-8"))]

    def renamed(self, names: list[str], rng: random.Random, style: str, argument_style: str):
        """(declarations, requests) of some of the tools: those requests that need no other tool and no argument left
        out."""
        tools, table, dropped = [], {}, set()
        for name in names:
            tool = copy.deepcopy(self.tools[name])
            new = tool_name(NAMES[name].split(" / "), "my", style, rng)
            properties, renamed = tool["parameters"]["properties"], {}
            for key in list(properties):
                optional = key not in tool["parameters"]["required"]
                if optional and len(properties) > 1 and name != "set_timer" and rng.random() < 0.15:
                    dropped.add((name, key))
                    del properties[key]
                    continue
                other = rng.choice([key, *ARGUMENTS[key].split(", ")])
                renamed[key] = styled(other, argument_style)
                hint = properties[key].get("description", "")
                properties[key]["description"] = hint.replace("without a, the, my, some", rng.choice(ARTICLES))
            if len(set(renamed.values())) < len(renamed):
                renamed = {key: styled(key, argument_style) for key in renamed}
            keys = list(renamed)
            rng.shuffle(keys)
            tool["parameters"]["properties"] = {renamed[key]: properties[key] for key in keys}
            tool["parameters"]["required"] = [renamed[k] for k in tool["parameters"]["required"]]
            tool.update(name=new, description=rng.choice(DESCRIPTIONS[name].split(" / ")))
            table[name] = (new, renamed)
            tools.append(tool)
        requests = []
        for item in rng.sample(self.requests, 600):
            calls = item["expectedToolCalls"]
            fits = all(
                call["name"] in table and not any((call["name"], key) in dropped for key in call["arguments"])
                for call in calls
            )
            if fits and calls:
                said = tuple(
                    (table[c["name"]][0], {table[c["name"]][1][k]: v for k, v in c["arguments"].items()}) for c in calls
                )
                requests.append(Request(item["userQuery"], said, False))
        return tools, requests
