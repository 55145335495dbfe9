"""A tiny random-weight Llama, written without torch, safetensors or tokenizers, which vLLM serves.

The same seed gives the same tensors, however many shards they are in and whatever Python writes them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import struct

HIDDEN, INTER, HEADS, KV_HEADS, VOCAB = 256, 512, 4, 2, 512
HEAD_DIM = HIDDEN // HEADS
BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

# bf16 is sign, 8 bits of exponent, 7 of mantissa, little-endian. A random low byte under one of
# these two high ones is a number of either sign between 2^-7 and 2^-5.
_HIGH = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))
_ONE = b"\x80\x3f"


def make_tiny_llama(out_dir, *, layers=4, seed=0, shards=2) -> None:
    """Write the model into `out_dir`: 0.5 MB and 1.2 MB a layer, in `shards` safetensors files.

    With it come config.json, generation_config.json, tokenizer.json, tokenizer_config.json and
    model.safetensors.index.json.
    """
    os.makedirs(out_dir, exist_ok=True)
    shapes = list(_shapes(layers).items())
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(shapes[len(shapes) * shard // shards : len(shapes) * (shard + 1) // shards])
        _write_safetensors(os.path.join(out_dir, name), part, seed)
        weight_map |= dict.fromkeys(part, name)
    total = sum(_size(shape) for _, shape in shapes)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    texts = {
        "model.safetensors.index.json": index,
        "config.json": _config(layers),
        "generation_config.json": {"bos_token_id": 0, "eos_token_id": 1},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 2048,
            "chat_template": CHAT_TEMPLATE,
        },
    }
    for name, value in texts.items():
        with open(os.path.join(out_dir, name), "w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1)


def _config(layers: int) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
    }


def _shapes(layers: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        shapes |= {
            f"{at}.input_layernorm.weight": (HIDDEN,),
            f"{at}.self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.k_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.v_proj.weight": (KV_HEADS * HEAD_DIM, HIDDEN),
            f"{at}.self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
            f"{at}.post_attention_layernorm.weight": (HIDDEN,),
            f"{at}.mlp.gate_proj.weight": (INTER, HIDDEN),
            f"{at}.mlp.up_proj.weight": (INTER, HIDDEN),
            f"{at}.mlp.down_proj.weight": (HIDDEN, INTER),
        }
    return shapes | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCAB, HIDDEN)}


def _size(shape: tuple[int, ...]) -> int:
    return 2 * shape[0] * (shape[1] if len(shape) == 2 else 1)


def _tensor(name: str, shape: tuple[int, ...], seed: int) -> bytes:
    if len(shape) == 1:  # a norm
        return _ONE * shape[0]
    weights = random.Random(f"{seed} {name}")  # noqa: S311 - weights, not secrets
    raw = bytearray(weights.randbytes(_size(shape)))
    raw[1::2] = raw[1::2].translate(_HIGH)
    return bytes(raw)


def _write_safetensors(path: str, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _size(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            stream.write(_tensor(name, shape, seed))


def _tokenizer() -> dict:
    """Describe a byte-level BPE: two special tokens, the 256 bytes, and 254 pairs of letters."""
    # Byte-level BPE spells a byte as a printable character: itself, or the next one from U+0100.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    alphabet = [chr(byte if byte in printable else next(others)) for byte in range(256)]
    starts = ((alphabet[ord(" ")], letter) for letter in "abcdefghijklmnopqrstuvwxyz")
    inner = itertools.product("etaoinshrdlucmfw", repeat=2)
    merges = list(itertools.islice(itertools.chain(starts, inner), VOCAB - 2 - len(alphabet)))
    vocab = [BOS, EOS, *alphabet, *(left + right for left, right in merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **special, "special": True}
            for number, token in enumerate((BOS, EOS))
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level | {"use_regex": True},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(vocab)},
            "merges": merges,
        },
    }


def main() -> None:
    """Write a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="directory to write into")
    parser.add_argument("--layers", type=int, default=4, help="1.2 MB each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=2)
    args = parser.parse_args()
    make_tiny_llama(args.out, layers=args.layers, seed=args.seed, shards=args.shards)


if __name__ == "__main__":
    main()
