"""transformers.js under Node gives the tokens that onnxruntime gives in Python; what is missing is said in one line."""

import json

import pytest

from fgtune.core.errors import ToolMissing
from fgtune.core.project import project_root
from fgtune.data.verbatim import is_verbatim
from fgtune.format.calls import parse_calls
from fgtune.format.template import TRIGGER, render
from fgtune.models.base import resolve_base
from fgtune.runtimes.constrained import Grammar
from fgtune.runtimes.node import NodeError, NodeGenerator, find_node, find_package
from fgtune.runtimes.onnxruntime import OrtGenerator

TOOLS = json.loads((project_root() / "examples" / "tools" / "everyday.json").read_text(encoding="utf-8"))[:3]
QUERIES = ["What is 3 + 4?", "Weather in Paris, please", "find pictures of cats\nand dogs", "été à Zürich 🙂"]


def messages(query):
    return [{"role": "developer", "content": TRIGGER}, {"role": "user", "content": query}]


PROMPTS = [render(messages(query), TOOLS, add_generation_prompt=True) for query in QUERIES]


@pytest.fixture(scope="module")
def generator(tiny_onnx):
    with NodeGenerator(tiny_onnx, "fp32", max_tokens=12) as made:
        yield made


def test_same_tokens_as_onnxruntime_with_and_without_the_shared_prefix(tiny_onnx, generator):
    expected = OrtGenerator(tiny_onnx, "fp32", max_tokens=12).generate_ids(PROMPTS)
    assert generator.generate_ids(PROMPTS) == expected
    shared = [row["reusedTokens"] for row in generator.stats]
    assert min(shared) > 100 and all(row["reusedTokens"] < row["promptTokens"] for row in generator.stats)
    assert generator.generate_ids(PROMPTS, share=False) == expected
    assert [row["reusedTokens"] for row in generator.stats] == [0] * 4
    assert len({tuple(ids) for ids in expected}) > 1  # the prompts do make a difference


def test_both_grammars_let_the_same_tokens_through(tiny_onnx, generator):
    """A random model, which would say anything, says the same under Python's and under JavaScript's: calls of the
    tools, and in verbatim arguments words of the question."""
    rules = Grammar(tiny_onnx, ["get_weather.city", "web_search.query"])
    python, generator.max_tokens = OrtGenerator(tiny_onnx, "fp32", max_tokens=60), 60
    for options in ({}, {"text": False}):
        constraints = [rules.constraint(TOOLS, each, **options) for each in PROMPTS]
        expected = python.generate(PROMPTS, constraints)
        assert generator.generate(PROMPTS, constraints) == expected
    assert generator.finished == python.finished and any(python.finished)
    generator.max_tokens = 12
    verbatim = []
    for query, text, finished in zip(QUERIES, expected, python.finished):
        for call in parse_calls(text) if finished else ():
            verbatim += [(call.arguments[name], query) for name in ("city", "query") if name in call.arguments]
    assert verbatim and all(is_verbatim(value, query) for value, query in verbatim)


def test_text_is_the_decoded_ids(generator):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(resolve_base("tiny").path / "tokenizer.json"))
    for text, ids in zip(generator.generate(PROMPTS), generator.generate_ids(PROMPTS), strict=True):
        assert text == tokenizer.decode(ids, skip_special_tokens=False)
    assert generator.encode(PROMPTS) == [tokenizer.encode(text, add_special_tokens=False).ids for text in PROMPTS]


def test_transformers_js_renders_the_prompt_that_we_render(generator):
    for query, expected in zip(QUERIES, PROMPTS, strict=True):
        assert generator.render(messages(query), TOOLS, add_generation_prompt=True) == expected
    answer = generator.chat(messages(QUERIES[0]), TOOLS)
    assert answer["prompt"] == PROMPTS[0] and answer["ids"] == generator.generate_ids(PROMPTS[:1])[0]


def test_stop_ids_end_an_answer(tiny_onnx, tmp_path):
    """A head that always says <start_function_response>: the answer is empty, not 12 tokens long."""
    import onnx
    from onnx import numpy_helper

    folder = tmp_path / "stops"
    folder.mkdir()
    for file in tiny_onnx.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    (folder / "onnx").mkdir()
    graph = onnx.load(tiny_onnx / "onnx" / "model.onnx")
    logits = next(o for o in graph.graph.output if o.name == "logits")
    vocab = json.loads((tiny_onnx / "config.json").read_text())["vocab_size"]
    import numpy as np

    bias = np.zeros(vocab, np.float32)
    bias[50] = 1e6
    producer = next(n for n in graph.graph.node if "logits" in n.output)
    producer.output[list(producer.output).index("logits")] = "plain_logits"
    graph.graph.initializer.append(numpy_helper.from_array(bias, "stop_bias"))
    graph.graph.node.append(onnx.helper.make_node("Add", ["plain_logits", "stop_bias"], ["logits"]))
    assert logits.name == "logits"
    onnx.save(graph, folder / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    with NodeGenerator(folder, "fp32", max_tokens=12) as made:
        assert made.generate_ids(PROMPTS[:2]) == [[], []]
        assert made.finished == [True, True]


def test_errors_are_one_line_and_the_process_goes_on(generator, tiny_onnx, tmp_path):
    with pytest.raises(NodeError, match="user"):
        generator.render([{"role": "nobody", "content": "x"}])
    assert generator.encode(["a"])[0]
    with pytest.raises(TypeError, match="list"):
        generator.generate("one string")
    with pytest.raises(NodeError, match=r"config\.json"):
        NodeGenerator(tmp_path, "fp32")
    with pytest.raises(NodeError, match="unknown variant 'q5'"):
        NodeGenerator(tiny_onnx, "q5")
    with pytest.raises(NodeError, match=r"holds no onnx/model_q4\.onnx"):
        NodeGenerator(tiny_onnx, "q4")


def test_a_process_that_dies_is_reported(tiny_onnx):
    made = NodeGenerator(tiny_onnx, "fp32", max_tokens=4)
    made.process.kill()
    with pytest.raises(NodeError, match="Node stopped with status"):
        made.generate(PROMPTS[:1])


def test_missing_node_and_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("FGTUNE_NODE", str(tmp_path / "none"))
    with pytest.raises(ToolMissing, match="does not run"):
        find_node()
    old = tmp_path / "node"
    old.write_text("#!/bin/sh\necho v16.0.0\n")
    old.chmod(0o755)
    monkeypatch.setenv("FGTUNE_NODE", str(old))
    with pytest.raises(ToolMissing, match=r"v16\.0\.0, version 20"):
        find_node()
    monkeypatch.delenv("FGTUNE_NODE")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(ToolMissing, match=r"Node\.js 20 or later is needed"):
        find_node()
    with pytest.raises(ToolMissing, match="npm ci"):
        find_package("no-such-package")
