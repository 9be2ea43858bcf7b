"""Base models: the tokenizer of the embedded weights, the routes, and one clear line where one fails."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from fgtune.core.project import project_root
from fgtune.format.tokens import CONTROL_TOKENS
from fgtune.models.base import resolve_base
from fgtune.models.base_model import BaseModelError
from fgtune.models.control_tokens import seed_control_embeddings
from fgtune.models.gguf import hugging_face_name
from fgtune.models.tokenizer_files import bpe_merges

VECTORS = project_root() / "tests" / "data" / "format-vectors.json"


@pytest.fixture(scope="module")
def tiny():
    return resolve_base("tiny").path


def test_the_published_tokenisation(real_tokenizer):
    vector = json.loads(VECTORS.read_text())["tokenized"]
    assert real_tokenizer.encode(vector["text"], add_special_tokens=False).ids == vector["ids"]
    assert real_tokenizer.decode(vector["ids"], skip_special_tokens=False) == vector["text"]


def test_ordinary_text_in_few_pieces(real_tokenizer):
    assert real_tokenizer.encode("The capital of France", add_special_tokens=False).tokens == [
        "The",
        "▁capital",
        "▁of",
        "▁France",
    ]
    for text in ("  two   runs\t\t\tof\n\n\nspace", "naïve 日本語 हिन्दी עברית 🙂", "\x00\x07 bytes \U0001f9ff"):
        ids = real_tokenizer.encode(text, add_special_tokens=False).ids
        assert real_tokenizer.decode(ids, skip_special_tokens=False) == text and 3 not in ids


def test_the_vocabulary_and_its_merges(real_tokenizer):
    data = json.loads(real_tokenizer.to_str())
    assert len(data["model"]["vocab"]) == 262_144 and len(data["model"]["merges"]) == 514_906
    assert all(real_tokenizer.token_to_id(name) == i for i, name in CONTROL_TOKENS.items())


def test_merges_are_ordered_runs_first():
    tokens = ["<pad>", "a", "b", "ab", "\n", "\n\n", "\n\n\n", "aba"]
    assert bpe_merges(tokens, {0}) == [("\n\n", "\n"), ("\n", "\n\n"), ("\n", "\n"), ("a", "b"), ("ab", "a")]


def test_gguf_norms_and_names():
    assert hugging_face_name("blk.3.ffn_norm.weight") == "model.layers.3.pre_feedforward_layernorm.weight"
    assert hugging_face_name("blk.12.attn_output.weight") == "model.layers.12.self_attn.o_proj.weight"
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"


def test_tiny_is_a_whole_gemma3_text_model(tiny):
    config = json.loads((tiny / "config.json").read_text())
    weights = load_file(tiny / "model.safetensors")
    assert config["model_type"] == "gemma3_text" and config["eos_token_id"] == [1, 50, 106]
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"]) == (2048, 64)
    assert len(weights) == 2 + 13 * config["num_hidden_layers"]
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    text = "<start_of_turn>user\nWeather in Zürich, 日本?<end_of_turn>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text and ids[0] == 105 and ids[-1] == 106


def test_tiny_is_the_same_each_time(tiny, tmp_path):
    again = resolve_base("tiny", tmp_path).path
    assert (again / "tokenizer.json").read_text() == (tiny / "tokenizer.json").read_text()
    a, b = load_file(again / "model.safetensors"), load_file(tiny / "model.safetensors")
    assert all(np.array_equal(a[name], b[name]) for name in b)


def plain_gemma(tiny, folder):
    """A stand-in for a Gemma 3 folder from elsewhere: reserved names where FunctionGemma has control tokens."""
    shutil.copytree(tiny, folder)
    text = (folder / "tokenizer.json").read_text()
    for i, name in CONTROL_TOKENS.items():
        text = text.replace(json.dumps(name), f'"<unused{i - 6}>"')
    (folder / "tokenizer.json").write_text(text)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}))
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_local_gemma_gets_the_control_tokens_and_the_template(tiny, tmp_path):
    folder = plain_gemma(tiny, tmp_path / "plain")
    found = resolve_base(str(folder), tmp_path / "cache")
    assert found.path != folder and "renamed" in found.source
    tokenizer = Tokenizer.from_file(str(found.path / "tokenizer.json"))
    assert tokenizer.encode("<escape>a<escape>", add_special_tokens=False).ids[::2] == [52, 52]
    assert "start_function_declaration" in (found.path / "chat_template.jinja").read_text()
    assert resolve_base(str(found.path)).path == found.path  # that one is used as it is


def test_a_folder_that_is_no_gemma(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(BaseModelError, match="is a 'llama' model"):
        resolve_base(str(folder))


def test_only_safetensors_are_loaded(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \*\.safetensors"):
        resolve_base(str(folder))


def test_a_tokenizer_with_other_tokens_in_the_reserved_places(tiny, tmp_path):
    folder = plain_gemma(tiny, tmp_path / "plain")
    text = (folder / "tokenizer.json").read_text().replace('"<unused44>"', '"<other>"')
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"token 50 of .* is '<other>'"):
        resolve_base(str(folder), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("local-*/config.json"))


@pytest.mark.parametrize("name", ["pypi:other", "./nowhere", "a/b/c", "gemma"])
def test_neither_folder_nor_hub_id(name):
    with pytest.raises(BaseModelError, match="is no folder and no Hub id"):
        resolve_base(name)


def hub_errors():
    import httpx  # noqa: F401  (the Hub client may carry either)
    import requests
    from huggingface_hub import errors

    response = requests.Response()
    response.status_code = 403
    return {
        "gated": errors.GatedRepoError("gated", response=response),
        "unknown": errors.RepositoryNotFoundError("missing", response=response),
        "offline": errors.LocalEntryNotFoundError("no network"),
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    [("gated", "accept its terms"), ("unknown", "knows no"), ("offline", "cannot be downloaded")],
)
def test_the_hub_route_says_what_to_do(monkeypatch, kind, message, tmp_path):
    error = hub_errors()[kind]

    def download(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(BaseModelError, match=message) as caught:
        resolve_base("google/functiongemma-270m-it", tmp_path)
    assert "pypi:gemma3-270m" in str(caught.value) and "\n" not in str(caught.value)


def test_the_hub_route_takes_a_downloaded_copy(monkeypatch, tiny, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(name=name, **options)
        return str(shutil.copytree(tiny, tmp_path / "snapshot"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolve_base("somebody/functiongemma-270m-it", tmp_path)
    assert found.source == "Hub model somebody/functiongemma-270m-it" and "token" not in asked
    assert not any(pattern.endswith((".bin", ".py")) for pattern in asked["allow_patterns"])


def test_weights_are_hashed_anew_when_they_change(tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    before = resolve_base(str(folder)).sha256
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    assert resolve_base(str(folder)).sha256 != before


def test_control_tokens_get_embeddings_of_their_own(tiny):
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((2048, 64)).astype(np.float32)
    control = [*CONTROL_TOKENS, 105, 106]
    noise = rng.standard_normal((len(control), 64))
    embedding[control] = embedding[6] + 0.05 * noise  # near copies, as in plain Gemma 3
    seeded = seed_control_embeddings(embedding, tiny / "tokenizer.json")

    def cosines(rows):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return (unit @ unit.T)[np.triu_indices(len(rows), 1)]

    assert cosines(embedding[control]).min() > 0.9 and cosines(seeded[control]).max() < 0.9
    assert np.allclose(np.linalg.norm(seeded, axis=1), np.linalg.norm(embedding, axis=1), rtol=1e-5)
    others = [i for i in range(2048) if i not in control]
    assert np.array_equal(seeded[others], embedding[others])
    copies = [cosines(np.stack([seeded[i], row])).max() for i in control for row in embedding[107:200]]
    assert max(copies) < 0.99  # none is a copy of an ordinary token either
